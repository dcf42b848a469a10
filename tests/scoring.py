"""Scores on maps that a test makes up, without a sweep."""
import math

import torch

from mmaselect.selection import scores


def value(score, *maps, labels=None):
    """The score of maps (N, D, h, w), one per view, and labels (N,) or (N, h, w)."""
    score = scores.build(score)
    return score.value(score.observe(maps, labels).double(), score.total(maps))


def cells(features):
    """(N, D) -> maps of one cell (N, D, 1, 1)."""
    return features[..., None, None]


def wave(height, width, fy, fx):
    """One channel with a single spatial frequency, in cycles per map, (1, 1, height, width)."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing='ij')
    return torch.cos(2 * math.pi * (fy * y + fx * x))[None, None]
