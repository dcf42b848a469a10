"""Checks of numbers that options are given as."""
from numbers import Integral
from typing import Any


def is_count(value: Any) -> bool:
    """Whether it is an integer from 1 on, and no bool."""
    return type(value) is int and value >= 1


def is_timestep(value: Any, steps: int) -> bool:
    """Whether it is an integer, NumPy's among them and no bool, in [0, steps)."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < steps


def check_batch_size(value: Any):
    """Raises ValueError where it is no integer from 1 on."""
    if not is_count(value):
        raise ValueError(f'batch_size={value!r}: an integer, at least one image at a time')
