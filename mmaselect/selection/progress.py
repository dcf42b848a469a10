"""What a sweep says while it runs: how many forward passes there will be, how long they will take, and a bar."""
import time
from collections.abc import Callable

from tqdm import tqdm

from .distributed import rank_and_size


class Progress:
    """Counts forward passes. The first rank speaks for all.

    Args:
        planned (int): Forward passes at most, over all ranks.
        reason (str): What they are made up of.
        show (bool): Whether there is a bar.
        log (Callable[[str], None] | None): Gets a line before the first forward pass, and one after it.
    """

    def __init__(self, planned: int, reason: str, *, show: bool, log: Callable[[str], None] | None):
        rank, self.ranks = rank_and_size()
        self.planned, self.begun, self.done = planned, 0.0, 0
        self.log = log if log and rank == 0 else lambda line: None
        self.bar = tqdm(desc='timestep sweep', unit=' forwards', total=planned // self.ranks, disable=not show or rank > 0)
        self.log(f'timestep sweep: at most {planned} forward passes ({reason})')

    def begin(self) -> None:
        """To be called before the transformer runs for the first time: what came before was the VAE's."""
        self.begun = self.begun or time.perf_counter()

    def advance(self, count: int) -> None:
        """To be called after each forward pass of ``count`` latents."""
        if not self.done:
            seconds = (time.perf_counter() - self.begun) * (self.planned / self.ranks / count - 1)
            self.log(f'timestep sweep: at most {_duration(seconds)} to go, by the first {count} forward passes')
        self.done += count
        self.bar.update(count)

    def close(self) -> None:
        self.bar.close()


def _duration(seconds: float) -> str:
    """90 -> '1 min 30 s'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s' if minutes else f'{seconds} s'
