"""Two processes that work together."""
import torch
import torch.multiprocessing


def two(function, *args):
    """Runs ``function(rank, *args)`` in two processes. Forked ones spare the seconds that imports take, and cannot use a GPU."""
    method = 'spawn' if torch.cuda.is_available() else 'fork'
    torch.multiprocessing.start_processes(function, args, nprocs=2, start_method=method)
