"""How sure is a choice? A bootstrap over the images (Efron 1979): the same choice, from images drawn again with replacement."""
import torch

from .candidates import middle
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


def confidence(curves, timesteps, chosen, plateau):
    """How sure the choice of ``timesteps[chosen]`` is, from the scores of resamples (draws, timesteps).

    Returns:
        tuple[tuple[int, int], float, float]: The timesteps between which the central 90 % of the choices lie, and the
            probabilities of the choice, and of it or a neighbouring candidate.
    """
    choices = middle(curves, timesteps, plateau).sort().values  # (draws,)
    cut = len(choices) // 20
    away = (choices - chosen).abs()
    return ((timesteps[choices[cut]], timesteps[choices[-1 - cut]]), (away == 0).double().mean().item(),
            (away <= 1).double().mean().item())
