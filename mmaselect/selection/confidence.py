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


def confidence(curves, timesteps, best):
    """How sure the choice of ``timesteps[best]`` is, from the scores of resamples (draws, timesteps).

    Where several candidates are equal, each of them is as good a choice.

    Returns:
        tuple[tuple[int, int], float, float]: The timesteps between which the central 90 % of the choices lie, and the
            probabilities of the choice, and of it or a neighbouring candidate.
    """
    equal = curves == curves.amax(1, keepdim=True)
    places = torch.arange(len(timesteps))
    lowest = torch.where(equal, places, len(timesteps)).amin(1).sort().values
    highest = torch.where(equal, places, -1).amax(1).sort().values
    cut = len(curves) // 20
    share = (equal / equal.sum(1, keepdim=True)).mean(0)  # (timesteps,)
    near = share[max(0, best - 1):best + 2].sum()
    return (timesteps[lowest[cut]], timesteps[highest[-1 - cut]]), share[best].item(), near.item()
