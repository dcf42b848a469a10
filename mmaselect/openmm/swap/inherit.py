"""A changed config as a short one that inherits from the original, wherever OpenMMLab's configs are installed."""
import copy
import difflib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

ZOOS = ('mmseg', 'mmpretrain')


def find(config: str | Path) -> Path:
    """The file of a config: a path, or the name of one that comes with a toolbox, as in 'mmseg::pspnet/pspnet_r50-d8_....py'.

    It is found in the installed module, since distributions of several names provide the same one.

    Raises:
        FileNotFoundError: It is not there; the message names those that are like it.
        ValueError: Another toolbox.
    """
    if '::' not in str(config):
        if not Path(config).is_file():
            raise FileNotFoundError(f'there is no config {config}')
        return Path(config)
    toolbox, _, name = str(config).partition('::')
    root = zoo(toolbox)
    if not (root / name).is_file():
        names = [str(path.relative_to(root)) for path in root.rglob('*.py')]
        near = difflib.get_close_matches(name, names, 3, 0.4)
        raise FileNotFoundError(f'{toolbox} has no config {name}' + (f': did you mean {" or ".join(near)}?' if near else ''))
    return root / name


def zoo(toolbox: str) -> Path:
    """The folder of the configs that a toolbox brings.

    Raises:
        FileNotFoundError: It is not installed, or without its configs.
        ValueError: Another toolbox.
    """
    if toolbox not in ZOOS:
        raise ValueError(f'{toolbox}:: is not a toolbox that can be swapped: choose one of {", ".join(ZOOS)}')
    spec = importlib.util.find_spec(toolbox)
    if spec is None:
        raise FileNotFoundError(f'{toolbox} is not installed')
    root = Path(spec.origin).parent / '.mim' / 'configs'
    if not root.is_dir():
        raise FileNotFoundError(f'{toolbox} is installed without its configs in {root}: give the path of a file')
    return root


def base(config: str | Path, out: str | Path) -> str:
    """The Python expression of ``_base_`` by which the config ``out`` inherits from ``config``.

    MMEngine reads 'mmseg::...' only where the distribution has the name that it expects; the module has the same one on every
    stack. Other files are named by their place beside ``out``.
    """
    if '::' in str(config):
        toolbox, _, name = str(config).partition('::')
        return f"__import__({toolbox!r}).__path__[0] + {'/.mim/configs/' + name!r}"
    return repr(os.path.relpath(Path(config).resolve(), Path(out).resolve().parent))


def overrides(old: Mapping, new: Mapping) -> dict:
    """What a config that inherits ``old`` has to say to become ``new``. A key that is gone deletes the dict around it."""
    changed = {}
    for key, value in new.items():
        if key in old and value == old[key] and type(value) is type(old[key]):
            continue
        before = old.get(key)
        if not isinstance(value, Mapping) or key not in old:
            changed[key] = value
        elif not isinstance(before, Mapping) or before.keys() - value.keys() or before.get('type') != value.get('type'):
            changed[key] = dict(_delete_=True, **value)
        else:
            changed[key] = overrides(before, value)
    return changed


def changes(old: Config, new: Config) -> dict:
    """As ``overrides``, of configs, and checked.

    Raises:
        ValueError: What inherits from ``old`` cannot become ``new``, as where a key would have to go altogether.
    """
    before, after = old.to_dict(), new.to_dict()
    changed = overrides(before, after)
    if Config._merge_a_into_b(copy.deepcopy(changed), before) != after:  # which takes _delete_ out
        raise ValueError('the change cannot be written as a config that inherits from the original')
    return changed


def inheriting(config: str | Path, old: Config, new: Config, out: str | Path, comment: str) -> str:
    """The text of the file ``out``: a config that inherits from ``config``, which is ``old``, and is ``new``.

    Raises:
        ValueError: As ``changes``.
    """
    return f'# {comment}\n_base_ = {base(config, out)}\n{Config(changes(old, new)).pretty_text}'
