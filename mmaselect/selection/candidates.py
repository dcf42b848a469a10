"""Which timesteps to try."""


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


def between(timesteps, best):
    """The timesteps halfway from ``best`` to its neighbours among ``timesteps``, as far as there are any in between."""
    place = timesteps.index(best)
    neighbours = timesteps[max(0, place - 1):place] + timesteps[place + 1:place + 2]
    return sorted({(best + other) // 2 for other in neighbours} - set(timesteps))
