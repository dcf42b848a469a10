"""The decision rule: which candidates to take, given their scores."""
from collections.abc import Sequence

import torch
from torch import Tensor


def plateau_bounds(curves: Tensor, plateau: float) -> tuple[Tensor, Tensor]:
    """Indices of the first and the last candidate of each curve's plateau: the run around its highest score whose scores lie
    within a share of the curve's range below it.

    Args:
        curves (Tensor): (..., T) scores. Of equal scores the first is the highest.
        plateau (float): The share, in [0, 1).

    Returns:
        tuple[Tensor, Tensor]: Indices (...) each.
    """
    indices = torch.arange(curves.shape[-1])
    highest, lowest = curves.amax(-1, keepdim=True), curves.amin(-1, keepdim=True)
    below = curves < highest - plateau * (highest - lowest)
    best = curves.argmax(-1, keepdim=True)
    first = torch.where(below & (indices < best), indices, -1).amax(-1) + 1
    last = torch.where(below & (indices > best), indices, curves.shape[-1]).amin(-1) - 1
    return first, last


def plateau_centre(curves: Tensor, timesteps: Sequence[int], plateau: float) -> Tensor:
    """Index of the candidate nearest the plateau's centre in sqrt(t). Near ties go to the noisier candidate. Ours.

    A score stands in for the accuracy of a probe. The two agree better on which timesteps are good than on which is best: where
    the curve hardly falls from t=0 to t=200, its maximum is an accident of the sample.
    A curve that is highest at its first or last candidate alone is taken there: one half of its plateau is seen, whose centre
    lies on the slope.

    Args:
        curves (Tensor): (..., T) scores.
        timesteps (Sequence[int]): The T candidates, ascending.
        plateau (float): See ``plateau_bounds``. 0 takes the highest score.

    Returns:
        Tensor: Indices (...).

    >>> plateau_centre(torch.tensor([0.9, 1.0, 0.95, 0.9, 0.3, 0.0]), [0, 40, 160, 360, 639, 999], 0.2)
    tensor(2)
    >>> plateau_centre(torch.tensor([1.0, 0.95, 0.9, 0.85, 0.3, 0.0]), [0, 40, 160, 360, 639, 999], 0.2)
    tensor(0)
    """
    indices, levels = torch.arange(len(timesteps)), torch.tensor(timesteps, dtype=torch.float64).sqrt()
    first, last = (bound[..., None] for bound in plateau_bounds(curves, plateau))
    distance = (levels - (levels[first] + levels[last]) / 2).abs()  # (..., T)
    distance = torch.where((indices >= first) & (indices <= last), distance, torch.inf)
    # Timesteps are rounded to integers, so that exact ties are rare.
    centre = torch.where(distance <= 1.3 * distance.amin(-1, keepdim=True), indices, -1).amax(-1)
    best = curves.argmax(-1)
    at_end = (curves == curves.amax(-1, keepdim=True)).sum(-1).eq(1) & ((best == 0) | (best == len(timesteps) - 1))
    return torch.where(at_end, best, centre)


def spaced_timesteps(timesteps: Sequence[int], scores: Sequence[float], count: int, gap: int) -> tuple[int, ...]:
    """The ``count`` best timesteps that lie at least a gap apart, the best first.

    Greedy: each is the best of those that leave room for the rest. The first is the best of all, unless no others fit beside it.

    Args:
        timesteps (Sequence[int]): In ascending order.
        scores (Sequence[float]): Theirs; of equal ones the cleanest comes first.
        count (int): How many to take.
        gap (int): In training timesteps.

    Raises:
        ValueError: There are not so many timesteps that far apart.

    >>> spaced_timesteps([0, 50, 100, 200], [3, 4, 2, 1], 2, gap=100)
    (50, 200)
    """
    chosen: tuple[int, ...] = ()
    score_of = dict(zip(timesteps, scores, strict=True))
    for t in sorted(timesteps, key=lambda t: score_of[t], reverse=True):
        if len(chosen) < count <= spaced_capacity(timesteps, (*chosen, t), gap):
            chosen += (t, )
    if len(chosen) < count:
        raise ValueError(f'{count} timesteps at least {gap} apart do not fit into the candidates {list(timesteps)}, of which '
                         f'{spaced_capacity(timesteps, (), gap)} would: lower gap or num_timesteps, or name other candidates')
    return chosen


def spaced_capacity(timesteps: Sequence[int], chosen: Sequence[int], gap: int) -> int:
    """How many of the timesteps, ``chosen`` among them, fit at least a gap apart; 0 where ``chosen`` alone do not."""
    taken = sorted(chosen)
    if any(b - a < gap for a, b in zip(taken, taken[1:], strict=False)):
        return 0
    for t in timesteps:  # ascending, each as early as it can be: no other way takes more
        if all(abs(t - other) >= gap for other in taken):
            taken.append(t)
    return len(taken)
