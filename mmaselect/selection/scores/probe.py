"""Scores that ask the labels: cheap stand-ins for training a probe, in the same sweep."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Score, register
from .consistency import sampled_cells, standardise

MEASURES = ('explained', 'accuracy', 'balanced')


def pooled(feature: Tensor, side: int) -> Tensor:
    """(B, D, h, w) -> (B, D * side * side), the mean over each of side x side parts of the grid."""
    return F.adaptive_avg_pool2d(feature.float(), side).flatten(1)


class Labelled(Score):
    """A row per image: a few vectors of features, each with its label behind it. One for a label per image, and ``cells``
    cells of the grid for a label per pixel."""
    labelled: ClassVar[bool] = True
    comparable: ClassVar[bool] = True
    pool: int
    cells: int

    def observe(self, maps: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        if labels is None:
            raise ValueError(f'the score {self.name!r} needs labels, and the images have none: choose a score without, such as '
                             'half_consistency')
        if labels.ndim == 1:
            features, labels = pooled(maps[0], self.pool)[:, None], labels[:, None]  # (B, 1, F)
        else:
            if self.cells < 2:
                raise ValueError(f'cells={self.cells}: look at two or more')
            h, w = maps[0].shape[-2:]
            chosen = sampled_cells(h, w, self.cells).to(maps[0].device)
            features = maps[0].float().flatten(2)[:, :, chosen].transpose(1, 2)  # (B, m, D)
            labels = labels.flatten(1)[:, chosen]
        return torch.cat([features, labels[..., None].to(features)], 2)  # (B, m, F + 1)


@register('ridge')
@dataclass(frozen=True)
class RidgeProbe(Labelled):
    """What a linear probe would get: a ridge regression on one-hot labels in closed form, each image predicted by the probe of
    all others.

    Leaving an image i out needs no refitting: its residuals are (I - H_ii)^-1 times those of the full fit, H_ii the block of the
    hat matrix that belongs to its rows (the classical formula, see Hastie, Tibshirani and Friedman, 'The Elements of Statistical
    Learning', section 7.10, for one row). For a label per image the score is the share of the one-hot labels' variance that is
    explained, the accuracy, which varies more from sample to sample, or its mean over the classes; for a label per pixel the
    mean IoU, or the accuracy's mean over the classes.
    Cost: one linear system of min(images * m, F) unknowns.

    Args:
        ridge (float): Penalty per sample, on standardised features.
        measure (str): 'explained' (for pixels the mean IoU), 'accuracy' (the same) or 'balanced', the mean over classes.
        pool (int): Maps are averaged to pool x pool parts where the label is one per image.
        cells (int): Cells per image that are looked at where the label is one per pixel. A fit to few cells favours features of
            fewer dimensions than a head, which is fitted to all, would.
    """
    ridge: float = 1.0
    measure: str = 'explained'
    pool: int = 2
    cells: int = 64

    def __post_init__(self):
        if self.measure not in MEASURES:
            raise ValueError(f'measure={self.measure!r}: choose one of {MEASURES}')

    def terms(self, rows: Tensor, total: Any) -> tuple[Tensor, Tensor]:
        n, m, _ = rows.shape
        labels = rows[..., -1].long().flatten()  # (n * m,)
        valid = labels >= 0
        classes = int(labels.max()) + 1 if valid.any() else 0
        if valid.view(n, m).any(1).sum() < 2 or len(labels[valid].unique()) < 2:
            raise ValueError('the score ridge needs images of at least two classes: raise num_images')
        if m == 1 and valid.sum() < 2 * len(labels[valid].unique()):
            raise ValueError(f'{n} images of {len(labels[valid].unique())} classes are too few for the score ridge, which '
                             'predicts each image from others of its class: raise num_images, or take a score without labels')
        features = rows[..., :-1].flatten(0, 1)  # (n * m, F)
        x = features.new_zeros(n * m, features.shape[1])
        kept = standardise(features[valid])
        x = x[:, :kept.shape[1]]
        x[valid] = kept
        y = F.one_hot(labels.clamp_min(0), classes).to(x) * valid[:, None]  # (n * m, C)
        target = (y - y.sum(0) / valid.sum()) * valid[:, None]
        penalty = self.ridge * valid.sum()
        if n * m <= x.shape[1]:
            gram = x @ x.T
            hat = torch.linalg.solve(gram + penalty * torch.eye(n * m, dtype=x.dtype), gram)  # (n * m, n * m)
            fitted = hat @ target
            own = torch.stack([hat[i:i + m, i:i + m] for i in range(0, n * m, m)])  # (n, m, m)
        else:
            inner = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T)  # (F, n * m)
            fitted = x @ (inner @ target)
            own = x.view(n, m, -1) @ inner.T.view(n, m, -1).transpose(1, 2)
        # The intercept is refitted as well: with that of all images, the others would say what the left-out one's label is.
        counts = valid.view(n, m, 1).to(x)
        own = own + counts * counts.transpose(1, 2) / valid.sum()
        residual = (target - fitted).view(n, m, classes)
        left_out = torch.linalg.solve(torch.eye(m, dtype=x.dtype) - own, residual)
        if m == 1 and self.measure == 'explained':
            energy = target.square().sum(1, keepdim=True)  # (n, 1)
            return energy - left_out.square().sum((1, 2))[:, None] * valid[:, None], energy
        predicted = (target.view(n, m, classes) - left_out + y.sum(0) / valid.sum()).argmax(-1)  # (n, m)
        truth, valid = labels.view(n, m), valid.view(n, m)
        if m == 1 and self.measure == 'accuracy':
            return ((predicted == truth) & valid).to(x), valid.to(x)
        of_class = F.one_hot(truth.clamp_min(0), classes).bool() & valid[..., None]  # (n, m, C)
        said = F.one_hot(predicted, classes).bool() & valid[..., None]
        whole = of_class if self.measure == 'balanced' else of_class | said
        return (of_class & said).sum(1).to(x), whole.sum(1).to(x)  # (n, C), per class: intersection, and union or members


@register('fisher')
@dataclass(frozen=True)
class Fisher(Labelled):
    """Share of the standardised features' variance that lies between the classes, in [0, 1] (Fisher's criterion, by traces).
    Cost: a mean per class."""
    pool: int = 1
    cells: int = 16

    def value(self, rows: Tensor, total: Any = None) -> float:
        rows = rows.flatten(0, 1)
        rows = rows[rows[:, -1] >= 0]
        features, labels = standardise(rows[:, :-1]), rows[:, -1].long()
        if not features.shape[1]:
            return 0.0
        members = F.one_hot(labels).to(features)  # (N, C)
        count = members.sum(0).clamp_min(1)
        means = members.T @ features / count[:, None]  # (C, D)
        return ((means.square() * count[:, None]).sum() / features.square().sum()).item()
