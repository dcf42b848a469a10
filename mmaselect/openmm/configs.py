"""What configs of both toolboxes need before a Runner is built, and how to walk through them."""
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config

from .console import log
from .neck import read_levels

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def nodes(tree: Any) -> Iterator[dict]:
    """Every dict of a config, outermost first."""
    if isinstance(tree, dict):
        yield tree
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    for child in children:
        yield from nodes(child)


def type_name(node: Mapping) -> str:
    """The name of a node's class, without scope or module; '' where it has none."""
    kind = node.get('type') or ''
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def merge_data_preprocessor(cfg: Config):
    """Puts a top-level data_preprocessor into the model that has none, as the Runner does when it builds it."""
    if cfg.get('data_preprocessor') and isinstance(cfg.get('model'), dict):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)


def fill_dataloaders(cfg: Config, *, pin_memory: bool = True, persistent_workers: bool = True):
    """Puts in what mmpretrain's own tools assume, and takes out what this machine cannot do."""
    for loader in filter(None, map(cfg.get, LOADERS)):
        if cfg.default_scope == 'mmpretrain':
            for key, value in dict(pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate')).items():
                loader.setdefault(key, value)
        if not pin_memory or not torch.cuda.is_available():
            loader.pin_memory = False
        if not persistent_workers or not loader.get('num_workers'):
            loader.persistent_workers = False  # with no workers torch raises


def add_forgotten_hook(cfg: Config):
    """Appends AutoTimestepHook where the model has an AutoTimestepNeck, at any depth, and the config forgot the hook.

    Not where another backbone is compared under the same neck: there is no timestep to choose.
    """
    hooks = cfg.get('custom_hooks') or []
    if ({'DiTBackbone', 'AutoTimestepNeck'} <= {type_name(node) for node in nodes(cfg.get('model'))}
            and not any(type_name(hook).endswith('AutoTimestepHook') for hook in hooks)):
        cfg.custom_hooks = [*hooks, dict(type='mmaselect.AutoTimestepHook')]
        log('the model has an AutoTimestepNeck: custom_hooks gets the mmaselect.AutoTimestepHook that the config lacks')


def leave_out_levels(cfg: Config):
    """Has the neck build the levels that heads read and no others, where the config does not say which.

    Raises:
        ValueError: A head reads a level that the neck does not build.
    """
    read = read_levels(cfg.get('model') or {})
    if read is not None:
        cfg.model.neck.setdefault('levels', read)
