"""Scores of the spatial spectrum: A-SelecT's idea (arXiv:2603.25758) in its plain reading, and what it takes to not reward noise.

Both work on F, the 2-D Fourier transform of each channel, and a high band: all frequencies farther from zero than ``cutoff``,
in units of Nyquist, by the radius or, for a square band, by the larger of the two components.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import Score, register


def frequency(h: int, w: int, band: str, device: torch.device | str) -> Tensor:
    """Distance of each frequency of an (h, w) grid from zero, in units of Nyquist, (h, w).

    Raises:
        ValueError: An unknown band.
    """
    y, x = (2 * torch.fft.fftfreq(side, device=device) for side in (h, w))
    if band == 'radial':
        return (y[:, None].square() + x[None].square()).sqrt()
    if band == 'square':
        return torch.maximum(y[:, None].abs(), x[None].abs())
    raise ValueError(f"band={band!r}: choose 'radial' or 'square'")


def energy(spectrum: Tensor) -> Tensor:
    """|F|^2, without the root that ``abs`` takes."""
    return spectrum.real.square() + spectrum.imag.square()


@register('hfr')
@dataclass(frozen=True)
class HighFrequencyRatio(Score):
    """Share of the feature map's spectral energy in its high band, in [0, 1].

    HFR = sum over the high band of |F|^p / sum over all, or all but zero (``dc=False``), of |F|^p. It is 0 where there is no
    energy to share. One view per image; a Fourier transform per map.

    Noise is all high frequency, so this rewards noise: see benchmarks/README.md for what that costs.

    Args:
        cutoff (float): Lower edge of the high band, as a fraction of Nyquist.
        dc (bool): Whether the mean of the map counts in the total.
        magnitude (bool): p = 1 in place of 2.
        band (str): 'radial' or 'square'.
    """
    cutoff: float = 0.5
    dc: bool = True
    magnitude: bool = False
    band: str = 'radial'

    def __post_init__(self):
        frequency(1, 1, self.band, 'cpu')  # refuses an unknown band here and not in the sweep

    def observe(self, maps: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        spectrum = torch.fft.fft2(maps[0].float(), norm='ortho')
        power = (spectrum.abs() if self.magnitude else energy(spectrum)).sum(1)  # (B, h, w)
        h, w = power.shape[-2:]
        distance = frequency(h, w, self.band, power.device)
        total = power if self.dc else power * (distance > 0)
        return torch.stack([(power * (distance > self.cutoff)).sum((1, 2)), total.sum((1, 2))], 1)  # (B, 2)

    def terms(self, rows: Tensor, total: Any) -> tuple[Tensor, Tensor]:
        return rows[:, :1], rows[:, 1:]


@register('hfr_coherent')
@dataclass(frozen=True)
class CoherentHighFrequencyRatio(Score):
    """Share of the spectral energy that is in the high band, differs between images, and agrees between two draws of noise. Ours.

    With the mean map of all images removed from each draw, the sum over the high band of Re (F1 - M1)(F2 - M2)* over the sum over
    all frequencies of (|F1 - M1|^2 + |F2 - M2|^2) / 2. Added noise cancels in the cross-spectrum; noise that is in the images,
    such as a sensor's, does not. In [-1, 1], 0 for constant features. Two passes per image, which must all be of one size.

    Args:
        cutoff (float): Lower edge of the high band, as a fraction of Nyquist.
        band (str): 'radial' or 'square'.
    """
    views: ClassVar[int] = 2
    cutoff: float = 0.25
    band: str = 'radial'

    def __post_init__(self):
        frequency(1, 1, self.band, 'cpu')  # refuses an unknown band here and not in the sweep

    def observe(self, maps: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        first, second = (torch.fft.fft2(m.float(), norm='ortho') for m in maps)
        cross = (first * second.conj()).real.sum(1)  # (B, h, w)
        power = (energy(first) + energy(second)).sum((1, 2, 3)) / 2
        h, w = cross.shape[-2:]
        high = frequency(h, w, self.band, cross.device) > self.cutoff
        return torch.stack([(cross * high).sum((1, 2)), power], 1)  # (B, 2)

    def total(self, maps: Sequence[Tensor]) -> Tensor | None:
        return torch.stack([m.double().sum(0) for m in maps]).cpu()  # (2, D, h, w)

    def terms(self, rows: Tensor, total: Any) -> tuple[Tensor, Tensor]:
        # Sum over images of Re (F1 - M1)(F2 - M2)* = sum of Re F1 F2* - N Re M1 M2*, and likewise for the power.
        first, second = torch.fft.fft2(total / len(rows), norm='ortho')  # (D, h, w)
        cross = (first * second.conj()).real.sum(0)  # (h, w)
        power = (energy(first) + energy(second)).sum() / 2
        h, w = cross.shape
        high = frequency(h, w, self.band, cross.device) > self.cutoff
        numerator, denominator = rows[:, :1] - (cross * high).sum(), rows[:, 1:] - power
        # What is left of constant features is rounding.
        return numerator, denominator * (denominator.sum() > 1e-5 * rows[:, 1].sum())
