"""Measures from the literature on how many dimensions pooled features use, for comparison. No labels.

They were made to compare trainings, where collapse is the danger; over timesteps, noise uses many dimensions too.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import Score, register
from .consistency import means, standardise


def effective_rank(spectrum: Tensor) -> float:
    """exp of the entropy of a spectrum (k,) made to sum to one (Roy and Vetterli 2007); 0 for a spectrum of zeros."""
    if spectrum.sum() <= 0:
        return 0.0
    share = spectrum / spectrum.sum() + 1e-7
    return torch.exp(-(share * share.log()).sum()).item()


class Pooled(Score):
    """The mean over the grid, one row per image and view."""

    def observe(self, maps: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        return means(maps)


@register('rankme')
@dataclass(frozen=True)
class RankMe(Pooled):
    """Effective rank of the pooled features: exp of the entropy of their singular values (Garrido et al. 2023, arXiv:2210.02885,
    eq. 1). Between 1 and min(N, D). Cost: a singular value decomposition of N x D."""

    def value(self, rows: Tensor, total: Any = None) -> float:
        return effective_rank(torch.linalg.svdvals(rows[:, 0]))


@register('alpha_req')
@dataclass(frozen=True)
class AlphaReQ(Pooled):
    """Minus the exponent by which the eigenvalues of the standardised pooled features' covariance decay: larger is flatter
    (after Agrawal et al. 2022, NeurIPS, 'alpha-ReQ', which takes features as they are and calls an exponent near 1 best).
    Fitted by least squares on the logarithms of the eigenvalues from the ``first`` to the ``last``. 0 where there are fewer than
    two."""
    first: int = 3
    last: int = 60

    def value(self, rows: Tensor, total: Any = None) -> float:
        eigenvalues = torch.linalg.svdvals(standardise(rows[:, 0])).square()[self.first - 1:self.last]
        eigenvalues = eigenvalues[eigenvalues > 1e-12 * eigenvalues.sum()]
        if len(eigenvalues) < 2:
            return 0.0
        place = torch.arange(self.first, self.first + len(eigenvalues), dtype=rows.dtype).log()
        place, height = place - place.mean(), eigenvalues.log() - eigenvalues.log().mean()
        return (place @ height / place.square().sum()).item()


@register('lidar')
@dataclass(frozen=True)
class LiDAR(Pooled):
    """Effective rank of the linear discriminants that tell images apart from their views (Thilak et al. 2023,
    arXiv:2312.04000, section 4): of S_w^-1/2 S_b S_w^-1/2, with ``delta`` added to the diagonal of S_w. Two augmented views per
    image where the paper has many, so that S_w is of low rank and ``delta`` counts. Cost: two eigendecompositions of D x D."""
    views: ClassVar[int] = 2
    augmented: ClassVar[bool] = True
    delta: float = 1e-4

    def value(self, rows: Tensor, total: Any = None) -> float:
        rows = rows - rows.mean(0)  # what all images share, the draw of noise of a view, is no spread within them
        centre = rows.mean(1)  # (N, D)
        spread = (rows - centre[:, None]).flatten(0, 1)  # (2 N, D)
        between = centre.T @ centre / len(centre)
        within = spread.T @ spread / len(centre) + self.delta * torch.eye(spread.shape[1], dtype=rows.dtype)
        values, vectors = torch.linalg.eigh(within)
        whiten = vectors / values.clamp_min(self.delta).sqrt()  # (D, D)
        return effective_rank(torch.linalg.eigvalsh(whiten.T @ between @ whiten).clamp_min(0))
