"""What ``fold`` makes of a DiT: the ViT that it is at fixed timesteps, with fused queries, keys and values."""
import functools
import re

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .dit import embed_patches

PROJECTIONS = ('query', 'key', 'value')
EVERYWHERE = ('query', 'key', 'value', 'hidden')  # taps that are the same wherever shift, scale and gate go
GELU = {'gelu': 'none', 'gelu-approximate': 'tanh'}  # diffusers' name -> torch's


class Modulation(nn.Module):
    """What remains of adaLN-Zero at one timestep, as far as ``need`` asks for it; all (D,)."""

    def __init__(self, width, need, affine):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)  # eps: diffusers' AdaLayerNormZero
        mlp = bool(need & {'mlp', 'hidden'})
        self.gate1 = nn.Parameter(torch.ones(width)) if affine and mlp else None
        self.norm2 = nn.LayerNorm(width, elementwise_affine=affine) if mlp else None
        self.gate2 = nn.Parameter(torch.ones(width)) if affine and 'hidden' in need else None

    def constants(self):
        """Weight, bias and gate of the attention and of the MLP; None where there is none."""
        norms = [(None, None) if norm is None else (norm.weight, norm.bias) for norm in (self.norm1, self.norm2)]
        return *norms[0], self.gate1, *norms[1], self.gate2


class FoldedBlock(nn.Module):
    """A ViT block with one set of LayerNorms and LayerScales per timestep, as far as the taps ``need`` ask for it."""

    def __init__(self, config, need, *, sets, affine):
        super().__init__()
        width = config.num_attention_heads * config.attention_head_dim
        attention, mlp = bool(need & {'attn', 'mlp', 'hidden'}), bool(need & {'mlp', 'hidden'})
        self.need, self.heads = need, config.num_attention_heads
        self.norm_eps, self.gelu = config.norm_eps, GELU[config.activation_fn]
        self.modulation = nn.ModuleList(Modulation(width, need, affine) for _ in range(sets))
        self.projections = tuple(name for name in PROJECTIONS if attention or name in need)
        # Named by what it holds, 'qkv' or less, so that a stored query never passes for a key.
        self.rows = ''.join(name[0] for name in self.projections)
        if self.rows:
            self.add_module(self.rows, nn.Linear(width, len(self.rows) * width, bias=config.attention_bias or not affine))
        self.proj = nn.Linear(width, width) if attention else None
        self.fc1 = nn.Linear(width, 4 * width) if mlp else None
        self.fc2 = nn.Linear(4 * width, width) if mlp else None

    def forward(self, x, constants, need):
        """Tokens (B, N, D) -> (taps, tokens or None), as a family's ``block``.

        What no tap holds is let go at once: memory that is used again is in the cache, and the peak is lower.
        """
        weight1, bias1, gate1, weight2, bias2, gate2 = constants
        taps = {}
        branch = self._attention(normalized(x, weight1, bias1, 1e-6), need, taps)  # (B, N, D)
        if need & {'mlp', 'hidden'}:
            x = added(x, gate1, branch)
            del branch
            inner = F.gelu(self.fc1(normalized(x, weight2, bias2, self.norm_eps)), approximate=self.gelu)  # (B, N, 4 * D)
            branch = self.fc2(inner)  # (B, N, D)
            del inner
            if 'mlp' in need:
                taps['mlp'] = branch
        if 'hidden' in need:
            taps['hidden'] = added(x, gate2, branch)
        return taps, taps.get('hidden')

    def _attention(self, modulated, need, taps):
        """Adds to ``taps`` what is needed of the attention, and gives its output (B, N, D), or None where nothing needs it."""
        if 'modulated' in need:
            taps['modulated'] = modulated
        if not need - {'modulated'}:
            return None
        qkv = getattr(self, self.rows)(modulated)  # (B, N, 3 * D), or as many D as the taps of the last block ask for
        for name, part in zip(self.projections, qkv.chunk(len(self.projections), dim=-1), strict=True):
            if name in need:
                taps[name] = part.contiguous()  # (B, N, D), and not a window on all three
        if not need & {'attn', 'mlp', 'hidden'}:
            return None
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, D / heads)
        del modulated, qkv, part
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, N, D)
        del query, key, value
        branch = self.proj(mixed)
        if 'attn' in need:
            taps['attn'] = branch
        return branch


def normalized(x, weight, bias, eps):
    """LayerNorm of (B, N, D) with weight and bias of (D,), or of (B, 1, D) where the images differ in their timestep."""
    if weight is None or weight.ndim == 1:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return F.layer_norm(x, x.shape[-1:], eps=eps) * weight + bias


def added(x, gate, branch):
    """The residual stream with a branch added through its gate, in one pass over memory."""
    if gate is None:
        return x + branch
    if x.dtype == branch.dtype:
        return torch.addcmul(x, gate, branch)
    with torch.autocast(x.device.type, enabled=False):  # which would first copy the branch to float32
        return torch.addcmul(x, gate, branch)


def walk(family, state, condition, taps, checkpointing=False):
    """Runs the blocks up to the last tap, and of that one what it needs: per tap tokens (B, N, D)."""
    last, features = taps[-1][0], []
    run = functools.partial(checkpoint, family.block, use_reentrant=False) if checkpointing else family.block
    for index in range(last + 1):
        wanted = [name for block, name in taps if block == index]
        need = set(wanted) if index == last else {*wanted, 'hidden'}
        found, state = run(index, state, condition, need)
        features += [found[name] for name in wanted]
    return features


class FoldedDiT(nn.Module):
    """A DiT at fixed timesteps: a family that knows these timesteps and taps alone. Made by ``fold``.

    Args:
        config (FrozenDict): Of the ``DiTTransformer2DModel``.
        timesteps (Sequence[int]): The linear layers are shared; each timestep has its own LayerNorms and LayerScales.
        taps (Sequence[tuple[int, str]]): As ``taps.resolve`` returns them. Decide what is kept.
        into (str): 'norm' or 'linear', see ``fold``.
        pos_scale (str): As ``DiT.pos_scale``.

    Raises:
        ValueError: Something here that cannot be folded.
    """

    probed: dict[int, tuple[int, ...]] = {}

    def __init__(self, config, timesteps, taps, *, into='norm', pos_scale='interpolate'):
        super().__init__()
        self.config, self.timesteps, self.into, self.pos_scale = config, tuple(timesteps), into, pos_scale
        self.depth = config.num_layers  # of the DiT, so that a block keeps its number
        self.width = config.num_attention_heads * config.attention_head_dim
        self.patch_size, self.in_channels = config.patch_size, config.in_channels
        if into not in ('norm', 'linear'):
            raise ValueError(f"into is 'norm' or 'linear', not {into!r}")
        if not self.timesteps or len(set(self.timesteps)) < len(self.timesteps):
            raise ValueError(f'fold takes one or several different timesteps, not {list(timesteps)}')
        if into == 'linear' and len(self.timesteps) > 1:
            raise ValueError("into='linear' makes linear layers for one timestep alone: fold several with into='norm'")
        if config.activation_fn not in GELU or config.norm_elementwise_affine:
            raise ValueError(f'a DiT with activation_fn={config.activation_fn!r} and norm_elementwise_affine='
                             f'{config.norm_elementwise_affine} cannot be folded: run it unfolded')
        self.last = taps[-1][0]
        self.patch = nn.Conv2d(self.in_channels, self.width, self.patch_size, self.patch_size)
        needs = [{'hidden'}] * self.last + [{name for block, name in taps if block == self.last}]
        self.blocks = nn.ModuleList(FoldedBlock(config, need, sets=len(self.timesteps), affine=into == 'norm') for need in needs)
        self.check(taps)

    def check(self, taps):
        """Raises ValueError where a tap (block, name) was folded away."""
        for block, name in taps:
            if self.into == 'linear' and name not in EVERYWHERE:
                raise ValueError(f"the tap {name!r} is gone when shift, scale and gate are in the linear layers: take one of "
                                 f"{', '.join(EVERYWHERE)}, or fold with into='norm'")
            if block > self.last or block == self.last and not self._has(name):
                raise ValueError(f'the tap {(block, name)} was folded away: this DiT was folded up to '
                                 f'{sorted(self.blocks[-1].need)} of block {self.last}. Fold with all taps that are wanted')

    def has(self, tap):
        """Whether DiT's blocks have this tap; ``check`` says what was folded away."""
        return True

    def _has(self, name):
        """Whether the last block computes this tap."""
        last = self.blocks[-1]
        return {'modulated': True, 'attn': last.proj is not None, 'mlp': last.fc2 is not None,
                'hidden': 'hidden' in last.need}.get(name, name in last.projections)

    def embed(self, latent):
        return embed_patches(self.patch, latent, self.config.sample_size // self.patch_size, self.pos_scale)

    def condition(self, places, blocks):
        """The constants of the first blocks at timesteps given by their places in ``timesteps``: one for all images or a list of
        one per image, whose constants are then (B, 1, D)."""
        chosen = [block.modulation for block in self.blocks[:blocks]]
        if len(places) == 1:
            return [sets[places[0]].constants() for sets in chosen]
        return [tuple(None if values[0] is None else torch.stack(values)[places][:, None]
                      for values in zip(*(one.constants() for one in sets), strict=True)) for sets in chosen]

    def block(self, index, state, condition, need):
        return self.blocks[index](state, condition[index], need)

    def block_of(self, name):
        found = re.search(r'(?:^|\.)(?:transformer_)?blocks\.(\d+)\.', name)  # as it is called here, or in the whole DiT
        return int(found[1]) if found else None

    def channels(self, tap):
        return self.width

    def read(self, noisy, places, taps, *, checkpointing=False, compiled=None):
        """As ``Family.read``, at timesteps given by their places in ``timesteps``; they are one or (B,)."""
        state = self.embed(noisy.to(self.patch.weight.dtype))
        run = walk if compiled is None else compiled(walk)
        return run(self, state, self.condition(places, taps[-1][0] + 1), taps, checkpointing)
