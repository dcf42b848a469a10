"""A folded DiT for other software: as timm's ``VisionTransformer``, and as ONNX.

Needs timm and safetensors for the one, and onnx and onnxscript for the other: ``pip install 'mmaselect[export]'``.
"""
import copy
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmaselect.files import atomic

from .families.dit import positions
from .families.folded_dit import walk
from .fold import fold

WEIGHTS, ARGUMENTS, GRAPH = 'model.safetensors', 'timm.json', 'model.onnx'
# A folded block's names -> those of timm's blocks.
TIMM = {'modulation.0.norm1': 'norm1', 'modulation.0.gate1': 'ls1.gamma', 'modulation.0.norm2': 'norm2',
        'modulation.0.gate2': 'ls2.gamma', 'qkv': 'attn.qkv', 'proj': 'attn.proj', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}


def folded_at(extractor, timestep):
    """The extractor's transformer, folded at this timestep alone, in float32 on the CPU; the extractor is not changed.

    Raises:
        ValueError: It is folded at other timesteps or into linear layers, or cannot be folded.
    """
    if extractor.timesteps is None:
        return fold(extractor.family, extractor.process, [timestep], extractor.taps).cpu().float().eval()
    if extractor.timesteps != (timestep,) or extractor.family.into != 'norm':
        raise ValueError(f'the transformer is folded at t={extractor.timesteps}, into={extractor.family.into!r}, and the export '
                         f"takes t={timestep} alone, into='norm': load it anew and fold it so, or leave it to the export")
    return copy.deepcopy(extractor.family).cpu().float().eval()


def token_grid(extractor, size):
    """Tokens (h, w) of images (height, width); None is the size that the DiT was trained at.

    Raises:
        ValueError: The size is not in whole tokens, which here cannot be padded.
    """
    side = extractor.family.config.sample_size // extractor.family.patch_size
    if size is None:
        return side, side
    if any(pixels < 1 or pixels % extractor.token_stride for pixels in size):
        raise ValueError(f'size is {tuple(size)} pixels: both must be multiples of {extractor.token_stride}, one token')
    return tuple(pixels // extractor.token_stride for pixels in size)


def timm_model(extractor, timestep, size=None):
    """What timm needs to make a ViT of a DiT: of noisy latents as ``process.add`` gives them, block outputs are the same.

    Args:
        extractor (Extractor): Its last tap must be 'hidden', since timm's blocks are whole.
        timestep (int): 0 the cleanest.
        size (tuple[int, int] | None): Height and width of the images in pixels. The positions are those of its tokens; timm
            interpolates them for latents of other sizes, which the DiT does not.

    Returns:
        tuple[dict, dict[str, Tensor]]: ``arguments`` of ``VisionTransformer`` with ``norm2_eps``, the eps of each block's second
        norm, for which timm has no argument; and its ``state_dict``.

    Raises:
        ValueError: As ``folded_at`` and ``token_grid``, or another last tap.
    """
    block, name = extractor.taps[-1]
    if name != 'hidden':
        raise ValueError(f"the last tap is {(block, name)} and timm's blocks are whole: take 'hidden' of that block, or the one "
                         'before, or write ONNX')
    folded, grid = folded_at(extractor, timestep), token_grid(extractor, size)
    config = folded.config
    base = config.sample_size // config.patch_size
    places = positions(folded.width, grid, base, folded.pos_scale, torch.device('cpu'), torch.float32)  # (1, h * w, D)
    state = {'patch_embed.proj.weight': folded.patch.weight, 'patch_embed.proj.bias': folded.patch.bias, 'pos_embed': places}
    for index, layers in enumerate(folded.blocks):
        for key, value in layers.state_dict().items():
            ours = next(ours for ours in TIMM if key.startswith(ours))
            state[f'blocks.{index}.{TIMM[ours]}{key[len(ours):]}'] = value
    arguments = dict(
        img_size=[side * folded.patch_size for side in grid], patch_size=folded.patch_size, in_chans=folded.in_channels,
        embed_dim=folded.width, depth=len(folded.blocks), num_heads=config.num_attention_heads, mlp_ratio=4,
        qkv_bias=config.attention_bias, init_values=1.0, class_token=False, global_pool='', num_classes=0, final_norm=False,
        dynamic_img_size=True, norm_layer='layernorm', act_layer='gelu_tanh' if layers.gelu == 'tanh' else 'gelu')
    model = dict(arguments=arguments, norm2_eps=config.norm_eps)
    return model, {key: value.detach().contiguous() for key, value in state.items()}


def write_timm(extractor, folder, timestep, size=None):
    """Writes what ``timm_model`` gives into ``folder``: model.safetensors, and timm.json with the arguments, the timestep and how
    its latents are made: noisy = signal * latent + sigma * noise. Raises as ``timm_model``."""
    model, state = timm_model(extractor, timestep, size)
    process, folder = extractor.process, Path(folder)
    model.update(timestep=timestep, signal=process.signal[timestep].item(), sigma=process.sigma[timestep].item())
    with atomic(folder / WEIGHTS) as path:
        save_file(state, path)
    with atomic(folder / ARGUMENTS) as path:
        path.write_text(json.dumps(model, indent=2) + '\n')


def load_timm(folder):
    """timm's ViT of a folder that ``write_timm`` wrote.

    Raises:
        FileNotFoundError: The folder lacks a file.
    """
    from timm.layers import LayerNorm
    from timm.models import VisionTransformer
    folder = Path(folder)
    model = json.loads((folder / ARGUMENTS).read_text())
    vit = VisionTransformer(**{**model['arguments'], 'norm_layer': LayerNorm})  # of which eps is 1e-6
    for block in vit.blocks:
        block.norm2.eps = model['norm2_eps']
    vit.load_state_dict(load_file(folder / WEIGHTS))
    return vit.eval()


class Graph(nn.Module):
    """Features of inputs of one size at one timestep, as ``write_onnx`` exports them: what is the same for all is a constant."""

    def __init__(self, extractor, timestep, size, *, inputs, noise, seed):
        super().__init__()
        self.family, self.taps, self.grid = folded_at(extractor, timestep), extractor.taps, token_grid(extractor, size)
        base = self.family.config.sample_size // self.family.patch_size
        self.register_buffer('places', positions(self.family.width, self.grid, base, self.family.pos_scale, torch.device('cpu'),
                                                 torch.float32))  # (1, h * w, D)
        self.encoder = None
        side = [cells * self.family.patch_size for cells in self.grid]  # of the latents
        self.shape = self.family.in_channels, *side
        if inputs == 'images':
            self.encoder = copy.deepcopy(extractor.encoder).cpu().float()
            self.encoder.drop_decoder()
            self.signal = extractor.process.signal[timestep].item()
            zeros = torch.zeros(1, *self.shape)
            eps = extractor.draw(zeros, noise, seed)[0] if noise == 'seeded' else zeros
            self.register_buffer('noise', extractor.process.sigma[timestep].float() * eps)  # (1, C, H, W)
            self.shape = self.encoder.image_channels, *(pixels * self.encoder.stride for pixels in side)

    def forward(self, inputs):
        if self.encoder is not None:
            latent = inputs if self.encoder.vae is None else self.encoder.encode(inputs)  # (B, C, H, W)
            inputs = self.signal * latent + self.noise
        tokens = self.family.patch(inputs).flatten(2).transpose(1, 2) + self.places  # (B, h * w, D)
        features = walk(self.family, tokens, self.family.condition([0], self.family.last + 1), self.taps)
        return tuple(one.transpose(1, 2).unflatten(2, self.grid) for one in features)  # (B, D, h, w)


def write_onnx(extractor, folder, timestep, size=None, *, inputs='latents', noise='seeded', seed=0):
    """Writes model.onnx into ``folder``: any number of inputs of one size -> a map (B, D, h, w) per tap, named 'block.tap'.

    Weights of more than 2 GB, which is as much as an ONNX file holds, go into model.onnx.data beside it.

    Args:
        extractor (Extractor): With the taps that are wanted.
        folder (str | Path): Made where it is not there.
        timestep (int): 0 the cleanest.
        size (tuple[int, int] | None): Height and width of the images in pixels; None is the size of the DiT's training.
        inputs (str): 'latents', noisy as ``process.add`` gives them, or 'images' in [-1, 1]: VAE and noise are then in the graph.
        noise (str): 'seeded' or 'none', of images.
        seed (int): For 'seeded'.

    Raises:
        ValueError: As ``folded_at`` and ``token_grid``, or unknown inputs or noise.
    """
    if inputs not in ('latents', 'images') or noise not in ('seeded', 'none'):
        raise ValueError(f"inputs are 'latents' or 'images' and noise 'seeded' or 'none', not {inputs!r} and {noise!r}")
    graph = Graph(extractor, timestep, size, inputs=inputs, noise=noise, seed=seed).eval()
    example = torch.zeros(2, *graph.shape)
    program = torch.onnx.export(
        graph, (example,), dynamo=True, input_names=[inputs], output_names=[f'{block}.{name}' for block, name in graph.taps],
        dynamic_shapes=({0: torch.export.Dim('batch')},), verbose=False)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.') as part:
        program.save(Path(part, GRAPH))
        for path in sorted(Path(part).iterdir(), reverse=True):  # the data before the graph that names it
            path.replace(folder / path.name)
