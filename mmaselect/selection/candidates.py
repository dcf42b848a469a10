"""The candidate grid: which timesteps to try."""
from collections.abc import Sequence

from mmaselect.extract.numbers import is_timestep


def candidate_grid(steps: int, count: int = 20) -> list[int]:
    """At most ``count`` timesteps from 0 to ``steps - 1``, denser at low noise: t = (steps - 1) u^2 for evenly spaced u.

    >>> candidate_grid(1000, 5)
    [0, 62, 250, 562, 999]
    """
    count = min(count, steps)
    if count == 1:
        return [0]
    return sorted({round((steps - 1) * (k / (count - 1)) ** 2) for k in range(count)})


def resolve_candidates(candidates: int | Sequence[int], steps: int) -> list[int]:
    """Checks candidates against a schedule of ``steps`` timesteps.

    Args:
        candidates (int | Sequence[int]): How many to spread over the schedule, or the timesteps themselves.
        steps (int): T, timesteps of the schedule.

    Returns:
        list[int]: Ascending, 0 the cleanest.

    Raises:
        ValueError: None, a repeated one, or one that is no integer or outside the schedule.
    """
    if isinstance(candidates, int):
        if isinstance(candidates, bool) or candidates < 1:
            raise ValueError(f'candidates must be at least one, not {candidates}')
        return candidate_grid(steps, candidates)
    listed = list(candidates) if isinstance(candidates, Sequence) and not isinstance(candidates, str) else []
    wrong = [t for t in listed if not is_timestep(t, steps)]
    if not listed or wrong or len(set(listed)) < len(listed):
        raise ValueError(f'candidates must be how many, or different timesteps, which are integers in [0, {steps - 1}]; got '
                         f'{candidates!r}')
    return sorted(map(int, listed))


def refined_candidates(timesteps: Sequence[int], first: int, chosen: int, last: int) -> list[int]:
    """Timesteps to try next: halfway across the bounds of the plateau from index ``first`` to ``last``, then halfway to both
    neighbours of index ``chosen``. Those that are there already are left out."""
    gaps = [(first - 1, first), (last, last + 1), (chosen - 1, chosen), (chosen, chosen + 1)]
    midpoints = [(timesteps[low] + timesteps[high]) // 2 for low, high in gaps if low >= 0 and high < len(timesteps)]
    return [t for t in dict.fromkeys(midpoints) if t not in timesteps]
