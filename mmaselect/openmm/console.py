"""A short console for tools: MMEngine's pages on the machine, the config and the hooks go to the log file alone."""
import contextlib
import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator

from mmengine.logging import print_log
from mmengine.runner import Runner

PAGES = ('System environment:', 'Config:', 'Hooks will be executed in the following order:')
NOISE = 'Could not import OneDL'  # printed by the onedl fork's mmseg, which has an optional dataset of this name
# launcher -> where it tells a process its rank, the number of processes, and both on this machine
LAUNCHERS = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NTASKS_PER_NODE'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_LOCAL_SIZE')}


def log(message: str):
    """Says it once, however many processes there are; the Runner and so its logger do not exist yet."""
    if all(os.environ.get(names[0], '0') == '0' for names in LAUNCHERS.values()):
        print_log(message, 'current')


def is_short(record: logging.LogRecord) -> bool:
    """Whether a log message is none of the pages."""
    return not record.getMessage().lstrip('\n-').startswith(PAGES)


@contextlib.contextmanager
def short() -> Iterator[None]:
    """Loggers of the Runners that are built inside print no pages."""
    build = Runner.build_logger

    def build_logger(self, *args, **kwargs):
        logger = build(self, *args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(is_short)
        return logger

    Runner.build_logger = build_logger  # type: ignore[method-assign]
    try:
        yield
    finally:
        Runner.build_logger = build  # type: ignore[method-assign]


def import_quietly(module: str) -> None:
    """Imports a module whose import prints ``NOISE``; whatever else it prints is printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        importlib.import_module(module)
    sys.stdout.writelines(line for line in printed.getvalue().splitlines(keepends=True) if line.strip() != NOISE)
