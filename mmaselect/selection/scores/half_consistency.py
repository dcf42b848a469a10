"""A score that asks, besides what two views share, what one half of an image tells of the other."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import register
from .consistency import Consistency, principal

# Quarters of a map, row by row: those of one half of an image, and those of the other.
PAIRS = (((0, 2), (1, 3)), ((1, 3), (0, 2)), ((0, 1), (2, 3)), ((2, 3), (0, 1)))
RIDGE = 0.1  # penalty per image, on standardised features


def explained(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a ridge regression explains of y (N, k) by x (N, j), each image predicted from all others.

    A left-out image's residual is that of the full fit over one minus its entry of the hat matrix (see ``probe.RidgeProbe``).

    Returns:
        tuple[Tensor, Tensor]: The energy of y that is explained, and all of it, (N,) each.
    """
    n = len(x)
    inner = torch.linalg.solve(x.T @ x + RIDGE * n * torch.eye(x.shape[1], dtype=x.dtype), x.T)  # (j, N)
    own = (x * inner.T).sum(1) + 1 / n  # (N,); the mean is refitted as well
    residual = (y - x @ (inner @ y)) / (1 - own)[:, None]
    energy = y.square().sum(1)
    return energy - residual.square().sum(1), energy


@register('half_consistency')
@dataclass(frozen=True)
class HalfConsistency(Consistency):
    """``view_consistency`` and, with a smaller weight, what one half of an image tells of its other half. Ours; no labels.

    Noise that is in the image itself, a sensor's for instance, is the same in every view, so that views alone take it for
    content. It is not the same in both halves of an image, which have the subject in common. That part is R^2 of a ridge
    regression, leave-one-out, from the leading principal components of one half in one view to those of the other half in the
    other view, mean over left and right, top and bottom, both ways. Two augmented views per image. Cost: nine
    eigendecompositions of D x D.

    Args:
        components (int): Leading principal components.
        view_weight (int): Weight of what views share, where that of the halves is 1.
    """
    aligned: ClassVar[bool] = True  # so that left stays left
    components: int = 16
    view_weight: int = 5

    def observe(self, maps: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        parts = [F.adaptive_avg_pool2d(m.float(), 2).flatten(2).transpose(1, 2) for m in maps]
        return torch.stack(parts, 1)  # (B, 2, 4, D)

    def terms(self, rows: Tensor, total: Any) -> tuple[Tensor, Tensor]:
        views = super().terms(rows.mean(2, keepdim=True), total)  # (N, k) each
        ratios = []
        for one, other in PAIRS:
            x = principal(rows[:, 0, one].mean(1), self.components)
            y = principal(rows[:, 1, other].mean(1), self.components)
            ratios.append(explained(x, y))
        of_pairs = [torch.stack(part, 1) for part in zip(*ratios, strict=True)]  # (N, 4) each
        # Repeated such that in the mean of all ratios the views weigh so much more than the pairs of halves.
        times = self.view_weight * len(PAIRS)
        first, second = (torch.cat([view.repeat(1, times), pair.repeat(1, view.shape[1])], 1)
                         for view, pair in zip(views, of_pairs, strict=True))
        return first, second
