"""What ranks of torch.distributed tell each other during a sweep. One process without it is rank 0 of 1."""
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar('T')


def rank_and_size() -> tuple[int, int]:
    """This process's rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def broadcast(value: T) -> T:
    """The first rank's value, on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]
