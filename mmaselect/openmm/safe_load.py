"""MMEngine's checkpoint loaders, made to treat a checkpoint as data: a file that holds code is refused, not run.

Stock MMEngine 0.10.7 unpickles whatever it is given. The onedl fork tries weights_only first, but allows ``getattr``, from
which every function can be reached, and falls back to plain unpickling. Here both stacks read tensors, plain values, numpy
arrays and the HistoryBuffers of a training checkpoint, and nothing else.
"""
import codecs
import functools
import os
import pickle
import re
import types
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

_torch_load = torch.load  # kept, since the loaders see ``load`` in its place


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""


class BrokenCheckpointError(CheckpointError):
    """The file is cut off, damaged or no checkpoint."""


class RefusedCheckpointError(CheckpointError):
    """The file asks for more than data."""


def _history_method(owner, name):
    """Stands for getattr, by which a pickled HistoryBuffer names its own four statistics, and allows no more than that."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'GLOBAL getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def _under_name(path, function):
    """``function`` under another name, since torch's allow list compares the names that a pickle spells out."""
    def alias(*args):
        return function(*args)
    alias.__module__, _, alias.__qualname__ = path.rpartition('.')
    alias.__name__ = alias.__qualname__
    return alias


def _allowed():
    """What a training checkpoint of MMEngine needs beyond torch's own list."""
    functions = {'builtins.getattr': _history_method, '_codecs.encode': codecs.encode}  # encode: how bytes are written
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):  # files of numpy 1 are read with numpy 2, and back
        functions[f'{module}._reconstruct'] = np.empty(0).__reduce__()[0]
        functions[f'{module}.scalar'] = np.float64().__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?SU'}
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *(_under_name(*item) for item in functions.items())]


_ALLOWED = _allowed()


@contextmanager
def _allow_list():
    """torch's list with ours added and without the real getattr, which the onedl fork adds."""
    serialization = torch.serialization
    before = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    serialization.add_safe_globals([g for g in before if g is not getattr] + _ALLOWED)
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


class _Unpickler(pickle._Unpickler):
    """The same rules for torch before 2.4, whose weights_only has no allow list: only listed names, only data is filled."""
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module, name):
        # torch.save writes Python 2's names, as in __builtin__.getattr
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        known = {f'{g.__module__}.{g.__qualname__}': g for g in _ALLOWED}
        known.update(torch._weights_only_unpickler._get_allowed_globals())
        if f'{module}.{name}' not in known:
            raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')
        return known[f'{module}.{name}']

    def load_build(self):
        target = self.stack[-2]
        if not isinstance(target, (torch.Tensor, dict, HistoryBuffer, np.ndarray, np.dtype)):
            raise pickle.UnpicklingError(f'GLOBAL state for {target!r}')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]


_PICKLE = types.SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=lambda f, **kw: _Unpickler(f, **kw).load())


def _read(file, **kwargs):
    if hasattr(torch.serialization, 'add_safe_globals'):
        with _allow_list():
            return _torch_load(file, weights_only=True, **kwargs)
    if zipfile.is_zipfile(file) and any(name.endswith('/constants.pkl') for name in zipfile.ZipFile(file).namelist()):
        raise pickle.UnpicklingError('GLOBAL TorchScript')  # torch.load would hand the file to torch.jit.load
    return _torch_load(file, weights_only=False, pickle_module=_PICKLE, **kwargs)


def _whole(file):
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def load(file, map_location=None, *, mmap=None, **ignored):
    """Reads a checkpoint as data. In place of torch.load, whose other arguments it ignores.

    Args:
        file (str | Path | BinaryIO): What torch.save wrote.
        map_location: As in torch.load.
        mmap (bool | None): Leave the tensors on the disk until they are used, which makes a check of the file cheap.

    Raises:
        OSError: There is no such file, or it cannot be opened.
        RefusedCheckpointError: It holds more than tensors, plain values, numpy arrays and HistoryBuffers.
        BrokenCheckpointError: It is cut off, damaged or no checkpoint.
    """
    file = os.fspath(file) if isinstance(file, os.PathLike) else file  # torch 2.1 maps no other
    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        checkpoint = _read(file, map_location=map_location, mmap=mmap and zipfile.is_zipfile(file))
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise  # not there, or not ours to read
    except Exception as error:
        name = re.search(r'GLOBAL (\S.*?)(?: was not an allowed| whose module|$)', str(error), re.MULTILINE)
        if isinstance(error, pickle.UnpicklingError) and (name or _whole(file)):
            # torch's own text is left out: it advises weights_only=False.
            raise RefusedCheckpointError(
                f'{file} is refused: it holds {name[1] if name else "something"} that is not plain data, and loading that can '
                'run code. If you trust its origin, have its weights saved there with torch.save(model.state_dict(), path), '
                'or allow that one class with torch.serialization.add_safe_globals') from None
        if _whole(file):
            raise  # not the file's fault
        raise BrokenCheckpointError(f'{file} is cut off, damaged or no checkpoint: copy it again or use an earlier '
                                    f'one') from error
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        # Runner.resume would run this text as a Python config. MMEngine writes 'cfg', which it only reads back as text.
        checkpoint['meta'].pop('config', None)
    return checkpoint


def _guard(loader):
    @functools.wraps(loader)  # MMEngine logs the loader's name
    def guarded(filename, map_location=None):
        before, torch.load = torch.load, load  # the loaders of all schemes (file, http, openmmlab, ...) end in it
        try:
            return loader(filename, map_location)
        finally:
            torch.load = before
    guarded.is_safe = True
    return guarded


def enable_safe_loading():
    """Makes every way by which MMEngine, and so both toolboxes, loads a checkpoint go through ``load``."""
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if not hasattr(loader, 'is_safe'):
            CheckpointLoader.register_scheme(prefix, _guard(loader), force=True)
