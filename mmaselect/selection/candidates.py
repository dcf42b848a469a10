"""Which timesteps to try, and which to take."""
import torch


def even(steps, count=20):
    """At most ``count`` timesteps from 0 to ``steps - 1``, denser at low noise: t = (steps - 1) u^2 for evenly spaced u.

    >>> even(1000, 5)
    [0, 62, 250, 562, 999]
    """
    count = min(count, steps)
    if count == 1:
        return [0]
    return sorted({round((steps - 1) * (k / (count - 1)) ** 2) for k in range(count)})


def resolve(candidates, steps):
    """Checks candidates against a schedule of ``steps`` timesteps.

    Args:
        candidates (int | Sequence[int]): How many to spread over the schedule, or the timesteps themselves.
        steps (int): T, timesteps of the schedule.

    Returns:
        list[int]: Ascending, 0 the cleanest.

    Raises:
        ValueError: None, a repeated one, or one outside the schedule.
    """
    if isinstance(candidates, int):
        if candidates < 1:
            raise ValueError(f'candidates must be at least one, not {candidates}')
        return even(steps, candidates)
    listed = [int(t) for t in candidates]
    outside = [t for t in listed if not 0 <= t < steps]
    if not listed or outside or len(set(listed)) < len(listed):
        raise ValueError(f'candidates must be different timesteps in [0, {steps - 1}]; got {listed}')
    return sorted(listed)


def finer(timesteps, first, chosen, last):
    """Timesteps to try next: halfway across the edges of the plateau that reaches from place ``first`` to ``last``, then on both
    sides of the place ``chosen`` in it, as far as there are any in between."""
    gaps = [(first - 1, first), (last, last + 1), (chosen - 1, chosen), (chosen, chosen + 1)]
    halves = [(timesteps[low] + timesteps[high]) // 2 for low, high in gaps if low >= 0 and high < len(timesteps)]
    return [t for t in dict.fromkeys(halves) if t not in timesteps]


def edges(curves, plateau):
    """The first and the last place of each curve's plateau: those around its highest score that lose no more than a share of what
    lies between the highest and the lowest.

    Args:
        curves (Tensor): (..., T); of equal scores the first is the highest.
        plateau (float): The share, in [0, 1).

    Returns:
        tuple[Tensor, Tensor]: Places (...) each.
    """
    places = torch.arange(curves.shape[-1])
    highest, lowest = curves.amax(-1, keepdim=True), curves.amin(-1, keepdim=True)
    below = curves < highest - plateau * (highest - lowest)
    best = curves.argmax(-1, keepdim=True)
    first = torch.where(below & (places < best), places, -1).amax(-1) + 1
    last = torch.where(below & (places > best), places, curves.shape[-1]).amin(-1) - 1
    return first, last


def middle(curves, timesteps, plateau):
    """The place next to the middle of each curve's plateau (see ``edges``) on the scale of ``even``, the noisier of two. Ours.

    A score is a stand-in for what a probe would find, and the two agree better on where the good timesteps lie than on which of
    them is best: of a curve that hardly falls from t=0 to t=200, the score's own noise picks any.

    >>> middle(torch.tensor([0.9, 1.0, 0.95, 0.9, 0.3, 0.0]), even(1000, 6), 0.2)
    tensor(2)
    """
    places, levels = torch.arange(len(timesteps)), torch.tensor(timesteps, dtype=torch.float64).sqrt()
    first, last = (end[..., None] for end in edges(curves, plateau))
    away = (levels - (levels[first] + levels[last]) / 2).abs()  # (..., T)
    away = torch.where((places >= first) & (places <= last), away, torch.inf)
    # Timesteps are rounded, so that two which are as near seldom are so exactly.
    return torch.where(away <= 1.3 * away.amin(-1, keepdim=True), places, -1).amax(-1)


def spread(timesteps, scores, count, gap):
    """The ``count`` best timesteps that lie at least a gap apart, the best first.

    Greedy: each is the best of those that leave room for the rest. So the first is the best of all, unless no others fit
    beside it.

    Args:
        timesteps (Sequence[int]): In ascending order.
        scores (Sequence[float]): Theirs; of equal ones the cleanest comes first.
        count (int): How many to take.
        gap (int): In training timesteps.

    Returns:
        tuple[int, ...]

    Raises:
        ValueError: There are not so many timesteps that far apart.

    >>> spread([0, 50, 100, 200], [3, 4, 2, 1], 2, gap=100)
    (50, 200)
    """
    chosen = ()
    for t in sorted(timesteps, key=dict(zip(timesteps, scores, strict=True)).get, reverse=True):
        if len(chosen) < count <= room(timesteps, (*chosen, t), gap):
            chosen += (t, )
    if len(chosen) < count:
        raise ValueError(f'{count} timesteps at least {gap} apart do not fit into the candidates {list(timesteps)}, of which '
                         f'{room(timesteps, (), gap)} would: lower gap or timesteps, or name other candidates')
    return chosen


def room(timesteps, chosen, gap):
    """How many of the timesteps, these among them, can be taken at least a gap apart; none where these are not."""
    taken = sorted(chosen)
    if any(b - a < gap for a, b in zip(taken, taken[1:], strict=False)):
        return 0
    for t in timesteps:  # in ascending order, each as early as it can be: no other way takes more
        if all(abs(t - other) >= gap for other in taken):
            taken.append(t)
    return len(taken)
