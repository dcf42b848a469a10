"""How good are these features? Scores of a candidate timestep, higher is better, chosen by name.

A score is two pure functions. ``observe`` turns the maps of a batch into one row of numbers per image; rows of all batches
and ranks are put together in the order of the images, so that neither batch size nor number of ranks changes the result;
``value`` turns them into the score.
"""
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

SCORES = {}


def register(name):
    """Class decorator that makes a score known by ``name``; see ``Score`` for what it must have."""
    def add(cls):
        if name in SCORES:
            raise ValueError(f'a score named {name!r} is already registered: {SCORES[name]}')
        cls.name = name
        SCORES[name] = cls
        return cls
    return add


def build(score):
    """A score from its name, from ``dict(type=name, **options)``, or itself.

    Raises:
        ValueError: Unknown name or options.
    """
    if isinstance(score, Score):
        return score
    options = dict(type=score) if isinstance(score, str) else dict(score)
    name = options.pop('type', None)
    if name not in SCORES:
        raise ValueError(f'unknown score {name!r}: choose one of {", ".join(SCORES)}, or register your own')
    try:
        return SCORES[name](**options)
    except TypeError as error:
        raise ValueError(f'score {name!r}: {error}') from error


class Score:
    """What a score must have.

    Attributes:
        name (str): Set by ``register``.
        views (int): Maps that it compares per image: 1, or 2 with independent noise.
        augmented (bool): Whether the views are random augmentations of the image (see ``views.py``) or the image itself.
    """
    name: ClassVar[str]
    views: ClassVar[int] = 1
    augmented: ClassVar[bool] = False

    def observe(self, maps):
        """``views`` maps, each (B, D, h, w) -> rows (B, K)."""
        raise NotImplementedError

    def value(self, rows):
        """Rows of all images (N, K), float64 -> float."""
        raise NotImplementedError

    def describe(self):
        """Name and options, such that ``build`` makes the same score of it."""
        return dict(type=self.name, **asdict(self))


@register('hfr')
@dataclass(frozen=True)
class HighFrequencyRatio(Score):
    """Share of the feature map's spectral energy in its high band: A-SelecT's idea (arXiv:2603.25758), in its plain reading.

    HFR = sum over r > cutoff of |F|^2 / sum over r > 0 (``dc=False``) or all of |F|^2, F the 2-D Fourier transform of each
    channel, r the radial frequency in units of Nyquist. It is 0 where there is no energy to share. One view per image.

    Noise is all high frequency, so this rewards noise: on pixels it was measured to pick timesteps that lose 3 to 70 points.

    Args:
        cutoff (float): Lower edge of the high band, as a fraction of Nyquist.
        dc (bool): Whether the mean of the map counts in the total.
    """
    cutoff: float = 0.5
    dc: bool = True

    def observe(self, maps):
        power = torch.fft.fft2(maps[0].float(), norm='ortho').abs().square().sum(1)  # (B, h, w)
        h, w = power.shape[-2:]
        y, x = (2 * torch.fft.fftfreq(side, device=power.device) for side in (h, w))  # 1 is Nyquist
        radius = (y[:, None].square() + x[None].square()).sqrt()  # (h, w)
        total = power if self.dc else power * (radius > 0)
        return torch.stack([(power * (radius > self.cutoff)).sum((1, 2)), total.sum((1, 2))], 1)  # (B, 2)

    def value(self, rows):
        high, total = rows.sum(0).tolist()
        return high / total if total > 0 else 0.0


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

    def observe(self, maps):
        return torch.cat([m.mean((2, 3)) for m in maps], 1)  # (B, 2 D)

    def value(self, rows):
        if len(rows) < 2:
            raise ValueError('view_consistency compares images and was given one: raise num_images')
        both = torch.cat(rows.chunk(2, dim=1))  # (2 N, D)
        both = both - both.mean(0)
        deviation = both.std(0)
        # A channel that does not vary carries nothing; dividing by its rounding error would make noise of it.
        varies = deviation > 1e-6 * both.abs().amax().clamp_min(1e-30)
        both = both[:, varies] / deviation[varies]
        if not both.shape[1]:
            return 0.0
        if self.components is not None:
            _, vectors = torch.linalg.eigh(both.T @ both)  # ascending
            both = both @ vectors[:, -self.components:]
        a, b = both.chunk(2)  # (N, k) each
        power = (a.square() + b.square()).mean(0) / 2
        return ((a * b).mean(0) / power.clamp_min(1e-30)).mean().item()
