"""How sure is a choice? A bootstrap over the images (Efron 1979): the same choice, from images drawn again with replacement."""
from collections.abc import Sequence

import torch
from torch import Tensor

from .choice import plateau_centre
from .scores import mean_ratio


def bootstrap(terms: Sequence[tuple[Tensor, Tensor]], resamples: int = 200, seed: int = 0) -> Tensor:
    """Scores of every candidate in resamples of the images, the same resamples for every candidate.

    The principal components and probes that a score fits are those of all images: only what is summed over images is resampled.

    Args:
        terms (Sequence[tuple[Tensor, Tensor]]): Per candidate what ``Score.terms`` gives, (N, k) each.
        resamples (int): How many.
        seed (int): Of the resamples.

    Returns:
        Tensor: (resamples, candidates).
    """
    count = len(terms[0][0])
    indices = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))
    ones = torch.ones(resamples, count, dtype=torch.float64)
    weights = torch.zeros_like(ones).scatter_add_(1, indices, ones)
    return torch.stack([mean_ratio(weights @ numerator, weights @ denominator) for numerator, denominator in terms], 1)


def confidence(curves: Tensor, timesteps: Sequence[int], chosen: int,
               plateau: float) -> tuple[tuple[int, int], float, float]:
    """How sure the choice of ``timesteps[chosen]`` is, from the scores of resamples (resamples, timesteps).

    Returns:
        tuple[tuple[int, int], float, float]: The timesteps between which the central 90 % of the choices lie, and the
            probabilities of the choice, and of it or a neighbouring candidate.
    """
    choices = plateau_centre(curves, timesteps, plateau).sort().values  # (resamples,)
    cut = len(choices) // 20
    distance = (choices - chosen).abs()
    return ((timesteps[choices[cut]], timesteps[choices[-1 - cut]]), (distance == 0).double().mean().item(),
            (distance <= 1).double().mean().item())
