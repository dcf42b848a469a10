"""Scores that ask what of an image's features survives an augmentation and another draw of noise."""
from dataclasses import dataclass
from typing import ClassVar

import torch

from . import Score, register


def standardise(features):
    """(N, D) to zero mean and unit deviation; channels that do not vary are dropped.

    Such a channel carries nothing, and dividing by its rounding error would make noise of it.
    """
    if len(features) < 2:
        return features[:, :0]
    centred = features - features.mean(0)
    deviation = centred.std(0)
    varies = deviation > 1e-6 * features.abs().amax(0)
    return centred[:, varies] / deviation[varies]


@register('view_consistency')
@dataclass(frozen=True)
class ViewConsistency(Score):
    """How much of what distinguishes images survives an augmentation and another draw of noise. Ours; no labels.

    Both views' pooled features are standardised together and projected on their leading principal components; per component
    the intraclass correlation of the two views is E[a b] / E[(a^2 + b^2) / 2]; the score is their mean, in [-1, 1]. Noise that
    differs between the draws lowers it, and so does detail that a small shift destroys. It is 0 for constant features.
    Two augmented views per image. Cost: one eigendecomposition of D x D.

    Args:
        components (int | None): Leading principal components; None keeps all.
    """
    views: ClassVar[int] = 2
    augmented: ClassVar[bool] = True
    components: int | None = 16

    def observe(self, maps, labels=None):
        return torch.stack([m.float().mean((2, 3)) for m in maps], 1)  # (B, 2, D)

    def terms(self, rows, total):
        if len(rows) < 2:
            raise ValueError('view_consistency compares images and was given one: raise num_images')
        both = standardise(rows.transpose(0, 1).flatten(0, 1))  # (2 N, D)
        if both.shape[1] and self.components is not None:
            _, vectors = torch.linalg.eigh(both.T @ both)  # ascending
            both = both @ vectors[:, -self.components:]
        a, b = both.chunk(2)  # (N, k) each
        return a * b, (a.square() + b.square()) / 2
