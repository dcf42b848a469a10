"""Scores that ask what of an image's features survives an augmentation and another draw of noise."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import Score, register


def standardise(features: Tensor) -> Tensor:
    """(N, D) to zero mean and unit deviation; channels that do not vary are dropped.

    Such a channel carries nothing, and dividing by its rounding error would make noise of it.
    """
    if len(features) < 2:
        return features[:, :0]
    centred = features - features.mean(0)
    deviation = centred.std(0)
    varies = deviation > 1e-6 * features.abs().amax(0)
    return centred[:, varies] / deviation[varies]


def principal(features: Tensor, components: int | None) -> Tensor:
    """(N, D), standardised, in their leading principal components (N, k); None keeps all."""
    features = standardise(features)
    if not features.shape[1] or components is None:
        return features
    if len(features) < features.shape[1]:  # the smaller of the two matrices has the same leading components
        values, vectors = torch.linalg.eigh(features @ features.T)  # ascending
        scores = vectors * values.clamp_min(0).sqrt()
    else:
        values, vectors = torch.linalg.eigh(features.T @ features)
        scores = features @ vectors
    # Components without energy are rounding, and their ratios are noise.
    return scores[:, values > 1e-10 * values[-1]][:, -components:]


def sampled_cells(h: int, w: int, count: int) -> torch.Tensor:
    """Indices of ``count`` cells of an (h, w) grid, spread at random but always the same; where there are fewer, some repeat."""
    order = torch.randperm(h * w, generator=torch.Generator().manual_seed(0))
    return order.repeat(-(-count // (h * w)))[:count].sort().values


def means(maps: Sequence[Tensor]) -> Tensor:
    """Maps of all views, (B, D, h, w) each, -> their means over the grid (B, views, D)."""
    return torch.stack([m.float().mean((2, 3)) for m in maps], 1)


class Consistency(Score):
    """The intraclass correlation of two augmented views, in the leading principal components. Rows are (B, 2, m, D), of m cells
    per image. What all images have in common at a cell of a view, its position and the noise that is added there, is left out:
    it tells no images apart."""
    views: ClassVar[int] = 2
    augmented: ClassVar[bool] = True
    comparable: ClassVar[bool] = True
    components: int | None

    def terms(self, rows: Tensor, total: Any) -> tuple[Tensor, Tensor]:
        n, _, m, _ = rows.shape
        if n < 2:
            raise ValueError(f'{self.name} compares images and was given one: raise num_images')
        features = principal((rows - rows.mean(0)).transpose(0, 1).flatten(0, 2), self.components)  # (2 N m, k)
        a, b = features.view(2, n, m, features.shape[1])
        return (a * b).sum(1), (a.square() + b.square()).sum(1) / 2  # (N, k) each


@register('view_consistency')
@dataclass(frozen=True)
class ViewConsistency(Consistency):
    """How much of what distinguishes images survives an augmentation and another draw of noise. Ours; no labels.

    The pooled features, centred in each view, are standardised together and projected on their leading principal components; per
    component the intraclass correlation of the two views is E[a b] / E[(a^2 + b^2) / 2]; the score is their mean, in [-1, 1].
    What the noise makes of an image lowers it where it differs between the draws, and so does detail that a small shift
    destroys. It is 0 for constant features.
    Two augmented views per image. Cost: one eigendecomposition of D x D.

    Args:
        components (int | None): Leading principal components; None keeps all.
    """
    components: int | None = 16

    def observe(self, maps: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        return means(maps)[:, :, None]  # (B, 2, 1, D)


@register('cell_consistency')
@dataclass(frozen=True)
class CellConsistency(Consistency):
    """``view_consistency`` of the cells of the map in place of the pooled map, for dense tasks. Ours; no labels.

    The views' maps are laid back on the image, and the intraclass correlation is that of the two features of the same place, in
    the leading principal components of all cells of all images. Two augmented views per image.

    Args:
        components (int | None): Leading principal components; None keeps all.
        cells (int): Cells per image that are looked at, of those that every view shows; on maps of less than 8 cells all are,
            since no cell lies far enough inside.
    """
    aligned: ClassVar[bool] = True
    components: int | None = 16
    cells: int = 16

    def observe(self, maps: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        h, w = maps[0].shape[-2:]
        top, left = h // 8, w // 8  # augmentation shifts by up to a tenth
        inner = torch.stack([m[:, :, top:h - top, left:w - left].flatten(2) for m in maps], 1)  # (B, 2, D, cells)
        chosen = sampled_cells(h - 2 * top, w - 2 * left, self.cells).to(inner.device)
        return inner[..., chosen].transpose(2, 3)  # (B, 2, m, D)
