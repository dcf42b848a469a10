"""Files that are whole or absent: nothing here leaves a half-written one behind."""
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and renames it to ``path`` when the block ends without an error.

    The suffix is kept, since many writers choose their format by it. Raises OSError, naming the folder, where it cannot
    be written.
    """
    path = Path(path)
    part = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise OSError(error.errno, f'cannot write into {path.parent} ({error.strerror}): choose another folder or free '
                      'this one') from error
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path`` and renames it to ``path`` when the block ends without an error.

    Raises FileExistsError where ``path`` is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f'{path} exists already: choose another folder or remove this one')
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
