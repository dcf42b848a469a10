"""Normalisation of a map's channels, and channels that are left out of it."""
import torch
from torch import nn


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of (B, D, h, w), without trained weights."""

    def __init__(self, channels):
        super().__init__(channels, elementwise_affine=False, eps=1e-6)

    def forward(self, feature):
        return super().forward(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MaskedNorm(nn.Module):
    """A norm of the channels that are kept; the others are zero.

    Zero and not removed, so that a head is as wide as without this and taps may differ in what they discard. Out of the norm
    altogether, since a massive channel would set the scale of all others, and a zero would not be one after a LayerNorm.
    """

    def __init__(self, norm, kept):
        super().__init__()
        self.norm = norm
        self.register_buffer('kept', torch.tensor(kept), persistent=False)

    def forward(self, feature):
        own = self.norm(feature[:, self.kept])  # (B, D - discarded, h, w)
        return own.new_zeros(feature.shape).index_copy(1, self.kept, own)


def normalise(kind, channels, discarded=()):
    """The norm of one map (B, channels, h, w): 'layer', 'channel' or None, without the ``discarded`` channels."""
    kept = [channel for channel in range(channels) if channel not in discarded]
    norm = (LayerNorm2d(len(kept)) if kind == 'layer' else nn.BatchNorm2d(len(kept), affine=False) if kind == 'channel'
            else nn.Identity())
    return MaskedNorm(norm, kept) if discarded else norm


def per_tap(discard_channels, num_taps, channels):
    """The channels to discard of each tap, from one list for all of them or a list per tap.

    Raises:
        ValueError: Another number of lists than taps, a channel that is not there, or no channel is kept.
    """
    given = list(discard_channels or ())
    nested = any(isinstance(item, (list, tuple)) for item in given)
    lists = given if nested else [given] * num_taps
    if len(lists) != num_taps or not all(isinstance(item, (list, tuple)) for item in lists):
        raise ValueError(f'discard_channels={discard_channels}: give one list of channels, or one per tap, of which there are '
                         f'{num_taps}')
    for own in lists:
        if not set(own) < set(range(channels)):
            raise ValueError(f'discard_channels={discard_channels}: name some of the channels 0 to {channels - 1}, and not all')
    return lists
