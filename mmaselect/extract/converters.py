"""Checkpoints in the layout of Meta's DiT code, as diffusers' ``DiTTransformer2DModel``.

DiT (arXiv:2212.09748), SiT (arXiv:2401.08740), REPA (arXiv:2410.06940) and REPA-E (arXiv:2504.10483) name and shape their weights
alike, and differ in the noise process that they were trained with. The weights do not tell which that was; see ``process_of``.
"""
import argparse
import contextlib
import math
import pickle
import re
from pathlib import Path

import safetensors
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from .families.dit import positions

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
    """The noise process of a checkpoint, one of PROCESSES: REPA's where there are projectors or REPA-E's normalisation, else as
    ``arch`` or the path says.

    Raises:
        ValueError: Nothing tells.
    """
    if any(key.startswith((_UNUSED, _LATENTS)) for key in state):
        return 'repa'
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


def _check_positions(state):
    table = state['pos_embed']  # (1, N, D)
    side = math.isqrt(table.shape[1])
    if side ** 2 != table.shape[1]:
        raise ValueError(f'pos_embed is {tuple(table.shape)}: a square grid of tokens was expected')
    expected = positions(table.shape[2], (side, side), side, 'interpolate', 'cpu', torch.float32)
    if not torch.allclose(table.float(), expected, rtol=0, atol=1e-3):  # files in bfloat16 pass, other tables do not
        raise ValueError('pos_embed is not the sin-cos table of DiT, which diffusers computes instead of loading: models with '
                         'other positions cannot be converted')
