"""Checkpoints of a training: whether they are whole, which is the newest, and what to do where the disk is full."""
import contextlib
import errno
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from .console import log
from .safe_load import BrokenCheckpointError, load

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or what a user may have of it


def check_writable(folder: str | Path, name: str = 'the work dir', option: str = '--work-dir'):
    """Raises OSError, naming cause and remedy, where a run could not write; makes the folder otherwise."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'0')
    except OSError as error:
        raise OSError(f'{name} {folder} cannot be written ({error.strerror}): choose another with {option} or free this '
                      'one') from error


def check_checkpoint(path: str):
    """Raises the error of ``safe_load.load``, before anything is built, for a file that will not load; URLs pass."""
    if '://' not in path:
        load(path, 'cpu', mmap=True)


@contextlib.contextmanager
def naming_full_disk(cfg: Config) -> Iterator[None]:
    """Says what lies on the disk and how to go on, where a file could not be written for want of space.

    Raises:
        OSError: As it came, with that.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        last = latest_checkpoint(cfg.work_dir)
        rest = (f'{last} is whole. Free some space and go on with --resume, which passes over what was cut off' if last else
                'no whole checkpoint was written before. Free some space and start again')
        raise OSError(error.errno, f'the disk of {cfg.work_dir} is full or its quota used up ({error.strerror}): {rest}. Each '
                      'checkpoint takes as much again; default_hooks.checkpoint.max_keep_ckpts limits their number') from error


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """The newest whole training checkpoint of a run that may have been killed at any moment, even while saving.

    The one that last_checkpoint names comes first, unless another is later by number and by time (the run was killed before
    it could name it); then the others, newest first. Time alone would mislead: copying a folder changes it.

    Returns:
        str | None: Its path, or None where no checkpoint is whole.

    Raises:
        RefusedCheckpointError: A checkpoint holds code. It is not skipped, since that could silently lose a long training.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    named = Path(pointer.read_text(errors='replace').replace('\0', '').strip() if pointer.is_file() else '')
    times: dict[Path, tuple[int, int]] = {}  # number, and ns
    # A CheckpointHook with an out_dir saves elsewhere. The work dir comes first, since it may have been moved since.
    for folder in (Path(work_dir), named.parent) if named.parent.name else (Path(work_dir),):
        for path in () if times else folder.glob('*.pth'):
            number = re.search(r'_(\d+)\.pth$', path.name)
            if number and not path.name.startswith('best_'):  # a best checkpoint has no optimizer state
                times[path] = int(number[1]), path.stat().st_mtime_ns
    pointed = next((path for path in times if path.name == named.name), None)

    def rank(path):
        later = pointed is not None and all(mine > its for mine, its in zip(times[path], times[pointed], strict=True))
        return later, path == pointed, times[path][1], times[path][0]

    for path in sorted(times, key=rank, reverse=True):
        try:
            found = load(path, 'cpu', mmap=True)
            if isinstance(found, dict) and {'meta', 'state_dict', 'message_hub'} <= found.keys():
                return str(path)
            log(f'skipped {path}: it does not hold the state of a training')
        except BrokenCheckpointError as error:
            log(f'skipped a checkpoint: {error}')
    log(f'no whole checkpoint to resume in {work_dir}: starting from scratch')
    return None
