"""Checks of numbers that options are given as."""
from numbers import Integral
from typing import Any


def is_count(value: Any) -> bool:
    """Whether it is an integer from 1 on, and no bool."""
    return type(value) is int and value >= 1


def is_timestep(value: Any, steps: int) -> bool:
    """Whether it is an integer, NumPy's among them and no bool, in [0, steps)."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < steps


def check_count(value: Any, name: str):
    """Raises ValueError where the option ``name`` is no integer from 1 on."""
    if not is_count(value):
        raise ValueError(f'{name}={value!r}: an integer, 1 or more')


def check_batch_size(value: Any):
    """Raises ValueError where it is no integer from 1 on."""
    if not is_count(value):
        raise ValueError(f'batch_size={value!r}: an integer, at least one image at a time')


def several(timestep: Any) -> tuple:
    """One timestep, or a list or tuple of several, as a tuple."""
    return tuple(timestep) if isinstance(timestep, (list, tuple)) else (timestep,)


def check_timesteps(timesteps: tuple, steps: int, count: int) -> tuple[int, ...]:
    """The timesteps again. Raises ValueError where they are not ``count`` different ones in [0, steps)."""
    for t in timesteps:
        if not is_timestep(t, steps):
            raise ValueError(f'timestep={t!r} is no integer in [0, {steps - 1}], 0 the cleanest')
    if len(timesteps) != count or len(set(timesteps)) < len(timesteps):
        given = timesteps[0] if len(timesteps) == 1 else list(timesteps)
        raise ValueError(f'timestep={given} does not name {count} different timesteps, as num_timesteps says')
    return timesteps
