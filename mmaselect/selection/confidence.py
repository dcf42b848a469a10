"""How sure is a choice? A bootstrap over the images (Efron 1979): the same choice, from images drawn again with replacement."""
import torch

from .scores import mean_ratio


def bootstrap(terms, draws=200, seed=0):
    """Scores of every candidate in ``draws`` resamples of the images, the same resamples for every candidate.

    The principal components and probes that a score fits are those of all images: only what is summed over images is resampled.

    Args:
        terms (Sequence[tuple[Tensor, Tensor]]): Per candidate what ``Score.terms`` gives, (N, k) each.
        draws (int): Resamples.
        seed (int): Of the resamples.

    Returns:
        Tensor: (draws, candidates).
    """
    count = len(terms[0][0])
    picks = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, picks, torch.ones(draws, count, dtype=torch.float64))
    return torch.stack([mean_ratio(weights @ numerator, weights @ denominator) for numerator, denominator in terms], 1)


def interval(values, level=0.9):
    """The central interval of ``level`` of integers, by order statistics: (lowest, highest)."""
    ordered = sorted(values)
    cut = int(len(ordered) * (1 - level) / 2)
    return ordered[cut], ordered[-1 - cut]
