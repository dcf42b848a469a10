"""How the maps of several timesteps and blocks become one."""
import torch
from torch import nn


def check_heads(channels, heads):
    """Raises ValueError where an attention's heads do not divide its channels."""
    if channels % heads:
        raise ValueError(f'num_heads={heads} does not divide the {channels} channels')


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
    to one layer with one query. Written out, since each cell is a sequence, and attention kernels of several versions of torch
    refuse more than 65535 of them (github.com/pytorch/pytorch/issues/146704).
    """

    def __init__(self, channels, sources, heads):
        super().__init__()
        check_heads(channels, heads)
        self.source = nn.Parameter(torch.zeros(sources, channels))
        self.query = nn.Parameter(torch.zeros(heads, channels // heads))
        for parameter in (self.source, self.query):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.norm = nn.LayerNorm(channels)
        self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, maps):
        tokens = self.norm(torch.stack([m.movedim(1, -1) for m in maps], -2) + self.source)  # (B, h, w, S, D)
        keys, values = (project(tokens).unflatten(-1, self.query.shape) for project in (self.key, self.value))
        logits = (keys * self.query).sum(-1, keepdim=True) / self.query.shape[1] ** 0.5  # (B, h, w, S, heads, 1)
        mixed = (logits.softmax(-3) * values).sum(-3).flatten(-2)  # (B, h, w, D)
        return self.out(mixed).movedim(-1, 1)  # (B, D, h, w)


FUSIONS = ('concat', 'mean', 'weights', 'attention')


def fuse(kind, channels, sources, heads):
    """The module that makes one map of a list of ``sources`` maps (B, channels, h, w), and that map's channels.

    Args:
        kind (str): One of ``FUSIONS``.
        channels, sources (int): D and S.
        heads (int): Of the attention.

    Returns:
        tuple[nn.Module, int]

    Raises:
        ValueError: The heads do not divide the channels.
    """
    if kind == 'concat':
        return Concat(), channels * sources
    if kind == 'attention':
        return Attention(channels, sources, heads), channels
    return Mean() if kind == 'mean' else Weights(sources), channels
