"""Takes memory, in a module that other processes can import."""
import torch


def allocating(held, passing):
    """Holds so many MiB, and while it is called needs ``passing`` more."""
    kept = torch.ones(held * 2**18)
    return lambda: (kept.sum(), torch.ones(passing * 2**18).sum())
