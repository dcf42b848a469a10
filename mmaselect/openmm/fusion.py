"""How the maps of several timesteps and blocks become one."""
import torch
from torch import nn

from .pooling import AttentionPool


class Concat(nn.Module):
    """Side by side, as DDPM-seg does (Baranchuk et al. 2022, arXiv:2112.03126): S maps (B, D, h, w) -> (B, S D, h, w)."""

    def forward(self, maps):
        return torch.cat(maps, 1)


class Mean(nn.Module):
    """The mean of S maps (B, D, h, w)."""

    def forward(self, maps):
        return torch.stack(maps).mean(0)


class Weights(nn.Module):
    """A weighted mean of S maps (B, D, h, w), with a trained weight per map: a softmax, at first uniform.

    As the mixing weights per timestep and layer of Diffusion Hyperfeatures (Luo et al. 2023, arXiv:2305.14334), without its
    bottleneck layers, since all maps of a DiT have the same width and resolution.
    """

    def __init__(self, sources):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(sources))

    def forward(self, maps):
        return sum(weight * m for weight, m in zip(self.logits.softmax(0), maps, strict=True))


class Attention(nn.Module):
    """A trained query attends, in each cell on its own, to the S maps (B, D, h, w), each told by a trained embedding.

    After DifFormer's attention over the blocks and noise steps of a U-Net (Mukhopadhyay et al. 2023, arXiv:2311.17921), reduced
    to a single layer of attention.
    """

    def __init__(self, channels, sources, heads):
        super().__init__()
        self.source = nn.Parameter(torch.zeros(sources, channels))
        nn.init.trunc_normal_(self.source, std=0.02)
        self.pool = AttentionPool(channels, heads)

    def forward(self, maps):
        b, d, h, w = maps[0].shape
        cells = torch.stack(maps, -1) + self.source.T[:, None, None]  # (B, D, h, w, S)
        cells = cells.permute(0, 2, 3, 1, 4).reshape(b * h * w, d, 1, -1)  # each cell a map of 1 x S
        return self.pool(cells).view(b, h, w, d).permute(0, 3, 1, 2)  # (B, D, h, w)


FUSIONS = ('concat', 'mean', 'weights', 'attention')


def fuse(kind, channels, sources, heads):
    """The module that makes one map of a list of ``sources`` maps (B, channels, h, w), and that map's channels.

    Args:
        kind (str): One of ``FUSIONS``.
        channels, sources (int): D and S.
        heads (int): Of the attention.

    Returns:
        tuple[nn.Module, int]
    """
    if kind == 'concat':
        return Concat(), channels * sources
    if kind == 'attention':
        return Attention(channels, sources, heads), channels
    return Mean() if kind == 'mean' else Weights(sources), channels
