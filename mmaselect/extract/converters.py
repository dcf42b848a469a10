"""Checkpoints in the layout of Meta's DiT code, as diffusers' ``DiTTransformer2DModel``, and of those who built on it.

DiT (arXiv:2212.09748), SiT (arXiv:2401.08740), REPA (arXiv:2410.06940) and REPA-E (arXiv:2504.10483) name and shape their weights
alike, and differ in the noise process that they were trained with. The weights do not tell which that was; see ``process_of``.
LightningDiT (arXiv:2501.01423) has other blocks, and becomes the model of ``families.lightning_dit``.
"""
import argparse
import contextlib
import math
import pickle
import re
from pathlib import Path

import safetensors
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from .families.dit import positions
from .families.lightning_dit import angles

SIZES = {'S': (12, 384, 6), 'B': (12, 768, 12), 'L': (24, 1024, 16), 'XL': (28, 1152, 16)}  # depth, width, heads; DiT, table 1
ARCHS = {f'{kind}-{size}/{patch}': (*SIZES[size], patch) for kind in ('DiT', 'SiT') for size in SIZES for patch in (2, 4, 8)}
PROCESSES = ('dit', 'sit', 'repa')

# Meta's names -> diffusers', of what is there once and of what each block has. qkv and the embedders are treated apart.
_ONCE = {'x_embedder.proj': 'pos_embed.proj', 'final_layer.linear': 'proj_out_2', 'final_layer.adaLN_modulation.1': 'proj_out_1'}
_BLOCK = {'adaLN_modulation.1': 'norm1.linear', 'attn.proj': 'attn1.to_out.0', 'mlp.fc1': 'ff.net.0.proj', 'mlp.fc2': 'ff.net.2'}
_EMBEDDERS = {
    't_embedder.mlp.0.weight': 'timestep_embedder.linear_1.weight', 't_embedder.mlp.0.bias': 'timestep_embedder.linear_1.bias',
    't_embedder.mlp.2.weight': 'timestep_embedder.linear_2.weight', 't_embedder.mlp.2.bias': 'timestep_embedder.linear_2.bias',
    'y_embedder.embedding_table.weight': 'class_embedder.embedding_table.weight',
}
# What the sizes are read from.
_SHAPED = ('x_embedder.proj.weight', 'y_embedder.embedding_table.weight', 'final_layer.linear.weight', 'pos_embed',
           'blocks.0.attn.qkv.weight')
_UNUSED = 'projectors.'  # REPA's alignment to another encoder's features, beside the network and used in training alone
_LATENTS = 'bn.'  # REPA-E's normalisation of the latents, a BatchNorm2d without weights in front of the noise
_LATENTS_EPS = 1e-4  # models/sit.py of its code
# LightningDiT's names -> ours, of the network and of each block. The cosines of its rotary positions are (N, D / heads).
_ROTARY = 'feat_rope.freqs_cos'
_LIGHTNING = {
    'x_embedder.proj': 'patch_embed', 't_embedder.mlp.0': 'timestep_embedder.linear_1', 't_embedder.mlp.2':
    'timestep_embedder.linear_2', 'y_embedder.embedding_table': 'class_embedder', 'final_layer.norm_final': 'norm_out',
    'final_layer.adaLN_modulation.1': 'modulation_out', 'final_layer.linear': 'proj_out'}
_LIGHTNING_BLOCK = {
    'norm1': 'norm1', 'norm2': 'norm2', 'adaLN_modulation.1': 'modulation', 'attn.proj': 'attn.to_out',
    'attn.q_norm': 'attn.norm_q', 'attn.k_norm': 'attn.norm_k', 'mlp.w12': 'ff.net.0.proj', 'mlp.w3': 'ff.net.2'}


def read_checkpoint(path):
    """The weights in a file of torch.save or safetensors, read as data: the EMA's where a training checkpoint has both.

    Returns:
        dict[str, Tensor]: In Meta's names, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds more than data (it is refused then, and nothing of it runs), or has no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} is not a file: give one of Meta\'s checkpoints, such as DiT-XL-2-256x256.pt')
    # Meta's training checkpoints carry their command line, a Namespace of plain data. Before torch 2.5 they are refused.
    allow = getattr(torch.serialization, 'safe_globals', lambda _: contextlib.nullcontext())
    try:
        if path.suffix == '.safetensors':
            state = load_file(path)
        else:
            with allow([argparse.Namespace]):
                state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL (\S+)', str(error))
        # torch's own text is left out: it advises weights_only=False.
        raise ValueError(f'{path} is refused: it holds {found[1] if found else "something"} that is not plain data, and loading '
                         'that can run code. Where its origin is trusted, save its weights alone there, with '
                         'torch.save(model.state_dict(), path)') from None
    except (RuntimeError, OSError, EOFError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f'{path} is cut off, damaged or no checkpoint: copy it again ({type(error).__name__})') from error
    for name in ('ema', 'model', 'state_dict'):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f'{path} holds no weights by name, at its top or under ema, model or state_dict')
    return state


def process_of(path, state, arch=None):
    """The noise process of a checkpoint, one of PROCESSES: REPA's where there are projectors or REPA-E's normalisation, SiT's of
    LightningDiT, else as ``arch`` or the path says.

    Raises:
        ValueError: Nothing tells.
    """
    if any(key.startswith((_UNUSED, _LATENTS)) for key in state):
        return 'repa'
    if is_lightning(state):
        return 'sit'  # transport/path.py of its code: time is the share of the image
    if arch is not None:
        return arch[:3].lower()
    names = re.findall(r'(?<![a-z])(dit|sit)-(?:s|b|l|xl)\b', str(Path(path).absolute()).lower())
    if not names:
        raise ValueError(f'neither the keys nor the path of {path} tell DiT from SiT, whose weights look alike: say '
                         '--process dit, sit or repa')
    return names[-1]


def scheduler_of(process):
    """The diffusers scheduler that stands for the noise process of DiT, SiT or REPA; see ``NoiseProcess.from_scheduler``.

    DiT's is DDPM's with 1,000 linear betas (section 4). SiT's and REPA's are the linear interpolant, in whose time SiT counts
    the share of the signal (its files: t=1 is clean) and REPA that of the noise (loss.py of its code: t=0 is clean).
    """
    if process == 'dit':
        return DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule='linear', clip_sample=False)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler.register_to_config(_model_time={'sit': 'signal', 'repa': 'sigma'}[process])
    return scheduler


def transformer_config(state, *, arch=None, heads=None):
    """The arguments of DiTTransformer2DModel for weights in Meta's layout.

    Args:
        state (dict[str, Tensor]): Meta's names. Tensors on the meta device will do.
        arch (str | None): One of ARCHS, to be checked against the shapes. None finds it by depth and width.
        heads (int | None): Attention heads, which no shape tells, of a model that is none of ARCHS.

    Raises:
        ValueError: Keys that are missing, shapes that are not those of ``arch``, or a size that is not known.
    """
    missing = [key for key in _SHAPED if key not in state]
    if missing:
        raise ValueError(f'{missing[0]} is missing: these are not weights in the layout of Meta\'s DiT code, whose keys are '
                         'x_embedder, t_embedder, y_embedder, pos_embed, blocks.N and final_layer')
    width, channels, patch, _ = state['x_embedder.proj.weight'].shape
    depth = 1 + max(int(key.split('.')[1]) for key in state if key.startswith('blocks.'))
    if arch is not None:
        if arch not in ARCHS:
            raise ValueError(f'arch {arch!r} is not known: choose one of {", ".join(ARCHS)}')
        *size, arch_heads, arch_patch = ARCHS[arch]
        if (depth, width, patch) != (*size, arch_patch):
            shape = tuple(state['x_embedder.proj.weight'].shape)
            raise ValueError(f'arch {arch} has {size[0]} blocks of width {size[1]} and patch {arch_patch}; the file has {depth} '
                             f'of width {width} and patch {patch} (x_embedder.proj.weight {shape}): leave the name out to have '
                             'it found')
        heads = heads or arch_heads
    heads = heads or {size[:2]: size[2] for size in SIZES.values()}.get((depth, width))
    if not heads or width % heads:
        raise ValueError(f'{depth} blocks of width {width} are none of DiT\'s sizes {", ".join(SIZES)}: give the number of '
                         'attention heads, a divisor of the width, with --heads')
    return dict(
        num_attention_heads=heads, attention_head_dim=width // heads, num_layers=depth, patch_size=patch, in_channels=channels,
        out_channels=state['final_layer.linear.weight'].shape[0] // patch ** 2,
        sample_size=math.isqrt(state['pos_embed'].shape[1]) * patch,
        num_embeds_ada_norm=len(state['y_embedder.embedding_table.weight']) - 1,  # the last row is the null class
        norm_type='ada_norm_zero', activation_fn='gelu-approximate', norm_eps=1e-6)


def convert(state, depth):
    """Weights in Meta's layout under diffusers' names.

    Args:
        state (dict[str, Tensor]): Meta's names. Not changed; most results share its memory.
        depth (int): Blocks.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The weights, and the keys that were left out because the network does not need
        them (REPA's projectors). diffusers wants an embedder of times and labels in every block, and safetensors no tensor
        under two names, so that these are copies.

    Raises:
        ValueError: Keys that are missing or unknown, or positions that are not sin-cos.
    """
    _check_positions(state)
    left = [key for key in state if key.startswith(_UNUSED)]
    rest = {key: value for key, value in state.items()
            if key not in left and key != 'pos_embed' and not key.startswith(_LATENTS)}

    def take(key):
        if key not in rest:
            raise ValueError(f'{key} is missing: the file is not a whole checkpoint in the layout of Meta\'s DiT code')
        return rest.pop(key)

    weights, embedders = {}, {new: take(old) for old, new in _EMBEDDERS.items()}
    for kind in ('weight', 'bias'):
        for old, new in _ONCE.items():
            weights[f'{new}.{kind}'] = take(f'{old}.{kind}')
        for index in range(depth):
            block = f'transformer_blocks.{index}.'
            for old, new in _BLOCK.items():
                weights[f'{block}{new}.{kind}'] = take(f'blocks.{index}.{old}.{kind}')
            for name, part in zip('qkv', take(f'blocks.{index}.attn.qkv.{kind}').chunk(3), strict=True):  # (D, D) or (D,) each
                weights[f'{block}attn1.to_{name}.{kind}'] = part
            for name, value in embedders.items():
                if name.endswith(kind):
                    weights[f'{block}norm1.emb.{name}'] = value.clone()
    if rest:
        raise ValueError(f'unknown keys {sorted(rest)[:5]}: this network has parts that DiT has not, and without them its '
                         'features would be others')
    return weights, left


def latent_statistics(state):
    """Mean and standard deviation per channel by which REPA-E's network normalises the latents of its VAE.

    Args:
        state (dict[str, Tensor]): Meta's names.

    Returns:
        dict[str, list[float]]: ``latents_mean`` and ``latents_std``, as AutoencoderKL's config has them; empty for others.
    """
    if f'{_LATENTS}running_mean' not in state:
        return {}
    deviation = (state[f'{_LATENTS}running_var'].double() + _LATENTS_EPS).sqrt()
    return dict(latents_mean=state[f'{_LATENTS}running_mean'].double().tolist(), latents_std=deviation.tolist())


def is_lightning(state):
    """Whether these are weights of LightningDiT: its MLP is SwiGLU's."""
    return 'blocks.0.mlp.w12.weight' in state


def lightning_config(state):
    """The arguments of LightningDiTTransformer2DModel for weights in the layout of LightningDiT's code.

    Raises:
        ValueError: Keys are missing, as in models that were trained without rotary positions or RMSNorm.
    """
    for key in (*_SHAPED, _ROTARY, 'blocks.0.norm1.weight', 'blocks.0.mlp.w3.weight'):
        if key not in state:
            raise ValueError(f'{key} is missing: LightningDiT is read as it was published, with rotary positions (use_rope), '
                             'RMSNorm (use_rmsnorm) and SwiGLU (use_swiglu)')
    width, channels, patch, _ = state['x_embedder.proj.weight'].shape
    places, head = state[_ROTARY].shape
    return dict(
        num_attention_heads=width // head, attention_head_dim=head, in_channels=channels,
        out_channels=len(state['final_layer.linear.weight']) // patch**2,
        num_layers=1 + max(int(key.split('.')[1]) for key in state if key.startswith('blocks.')),
        ffn_dim=state['blocks.0.mlp.w3.weight'].shape[1], sample_size=math.isqrt(places) * patch, patch_size=patch,
        num_embeds_ada_norm=len(state['y_embedder.embedding_table.weight']) - 1,  # the last row is the null class
        qk_norm='blocks.0.attn.q_norm.weight' in state)


def convert_lightning(state):
    """Weights in the layout of LightningDiT's code under our names.

    Raises:
        ValueError: Keys that are unknown, or positions that are not its own.
    """
    _check_positions(state)
    places, head = state[_ROTARY].shape
    side = math.isqrt(places)
    turn = angles(head, (side, side), side, 'interpolate', 'cpu').repeat_interleave(2, 1)  # (N, D / heads)
    if not _close(state[_ROTARY], turn.cos().float()):
        raise ValueError(f'{_ROTARY} is not the table of rotary positions of LightningDiT, which is computed instead of loaded')
    weights, unknown = {}, []
    for key, value in state.items():
        if key == 'pos_embed' or key.startswith('feat_rope.'):
            continue
        block, name, kind = re.fullmatch(r'(blocks\.\d+\.)?(.+)\.(\w+)', key).groups()
        prefix, table = (block.replace('blocks', 'transformer_blocks'), _LIGHTNING_BLOCK) if block else ('', _LIGHTNING)
        if block and name == 'attn.qkv':
            weights.update({f'{prefix}attn.to_{letter}.{kind}': part for letter, part in zip('qkv', value.chunk(3), strict=True)})
            continue
        if name not in table:
            unknown.append(key)
            continue
        if name == 'mlp.w12':
            value = torch.cat(value.chunk(2)[::-1])  # diffusers' SwiGLU has the gate second
        elif table[name] == 'modulation' and 3 * len(value) == 4 * len(state[f'{block}attn.qkv.{kind}']):  # no shifts (wo_shift)
            scale, gate, mlp_scale, mlp_gate = value.chunk(4)
            value = torch.cat([torch.zeros_like(scale), scale, gate, torch.zeros_like(scale), mlp_scale, mlp_gate])
        weights[f'{prefix}{table[name]}.{kind}'] = value
    if unknown:
        raise ValueError(f'unknown keys {unknown[:5]}: this network has parts that LightningDiT has not, and without them its '
                         'features would be others')
    return weights


def read_statistics(path, channels):
    """``latents_mean`` and ``latents_std`` of a file latents_stats.pt of LightningDiT, as AutoencoderKL's config has them.

    Raises:
        ValueError: It is no such file, or one of another number of ``channels``.
    """
    state = read_checkpoint(path)
    if state.keys() != {'mean', 'std'} or any(value.numel() != channels for value in state.values()):
        found = {key: tuple(value.shape) for key, value in state.items()}
        raise ValueError(f'{path} has {dict(list(found.items())[:3])}: the mean and std of {channels} channels were expected')
    return {f'latents_{name}': value.double().flatten().tolist() for name, value in state.items()}


def convert_vae(state):
    """The AutoencoderKL of weights in the layout of the latent diffusion code (arXiv:2112.10752), which VA-VAE's files have.

    diffusers' own conversion leaves out the attention that VA-VAE has at its lowest resolution.

    Args:
        state (dict[str, Tensor]): What is of no encoder and no decoder, such as losses, is left out.

    Raises:
        ValueError: Keys are missing.
    """
    state = {key: value for key, value in state.items() if re.match('(encoder|decoder|quant_conv|post_quant_conv)\\.', key)}
    try:
        levels = 1 + max(int(found[1]) for key in state if (found := re.match(r'encoder\.down\.(\d+)\.', key)))
        config = dict(
            in_channels=state['encoder.conv_in.weight'].shape[1], out_channels=len(state['decoder.conv_out.weight']),
            latent_channels=state['post_quant_conv.weight'].shape[1], scaling_factor=1.0,
            block_out_channels=[len(state[f'encoder.down.{level}.block.0.conv2.weight']) for level in range(levels)],
            layers_per_block=len([key for key in state if re.fullmatch(r'encoder\.down\.0\.block\.\d+\.conv1\.weight', key)]),
            down_block_types=['AttnDownEncoderBlock2D' if f'encoder.down.{level}.attn.0.q.weight' in state else
                              'DownEncoderBlock2D' for level in range(levels)],
            up_block_types=['AttnUpDecoderBlock2D' if f'decoder.up.{level}.attn.0.q.weight' in state else
                            'UpDecoderBlock2D' for level in reversed(range(levels))])
    except (KeyError, ValueError) as error:
        raise ValueError(f'this is no VAE in the layout of the latent diffusion code ({error}): give a folder of diffusers\' '
                         'AutoencoderKL, or a file such as vavae-imagenet256-f16d32-dinov2.pt') from error
    names = ((r'down\.(\d+)\.', r'down_blocks.\1.'), (r'up\.(\d+)\.', lambda m: f'up_blocks.{levels - 1 - int(m[1])}.'),
             (r'mid\.block_(\d)', lambda m: f'mid_block.resnets.{int(m[1]) - 1}'), (r'mid\.attn_1', 'mid_block.attentions.0'),
             (r'\.block\.', '.resnets.'), (r'\.attn\.', '.attentions.'), (r'(down|up)sample\.conv', r'\1samplers.0.conv'),
             (r'\.norm_out', '.conv_norm_out'), ('nin_shortcut', 'conv_shortcut'), ('proj_out', 'to_out.0'),
             (r'(attentions\.\d+)\.norm', r'\1.group_norm'), (r'(attentions\.\d+)\.([qkv])\.', r'\1.to_\2.'))
    weights = {}
    for key, value in state.items():
        for old, new in names:
            key = re.sub(old, new, key)
        weights[key] = value[..., 0, 0] if '.attentions.' in key and value.ndim == 4 else value  # 1 x 1 convolutions
    with torch.device('meta'):
        vae = AutoencoderKL(**config)
    vae.load_state_dict(weights, assign=True)
    return vae


def _close(table, expected):
    return table.shape == expected.shape and torch.allclose(table.float(), expected, rtol=0, atol=1e-3)  # files in bfloat16 pass


def _check_positions(state):
    table = state['pos_embed']  # (1, N, D)
    side = math.isqrt(table.shape[1])
    if side ** 2 != table.shape[1]:
        raise ValueError(f'pos_embed is {tuple(table.shape)}: a square grid of tokens was expected')
    expected = positions(table.shape[2], (side, side), side, 'interpolate', 'cpu', torch.float32)
    if not _close(table, expected):
        raise ValueError('pos_embed is not the sin-cos table of DiT, which diffusers computes instead of loading: models with '
                         'other positions cannot be converted')
