"""What configs of both toolboxes need before a Runner is built, and how to walk through them."""
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config

from .console import log
from .neck import SCALES, level_indices

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def nodes(tree: Any) -> Iterator[dict]:
    """Every dict of a config, outermost first."""
    if isinstance(tree, dict):
        yield tree
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    for child in children:
        yield from nodes(child)


def type_name(node: Mapping) -> str:
    """The name of a node's class, as ``class_name``."""
    return class_name(node.get('type'))


def class_name(kind: Any) -> str:
    """The name of what a config names or holds as a type, without scope or module; '' of None."""
    kind = kind or ''
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def heads(model: Mapping) -> Iterator[tuple[str, dict]]:
    """Place and config of each head, those in lists too."""
    for key in ('decode_head', 'auxiliary_head', 'head'):
        found = model.get(key)
        for k, head in enumerate(found if several(found) else [found] if found else ()):
            yield f'{key}[{k}]' if several(found) else key, head


def readers(model: Mapping) -> Iterator[tuple[str, dict]]:
    """As ``heads``, with the part of K-Net's head that reads the maps, its first round, in its place."""
    for place, head in heads(model):
        inner = head.get('kernel_generate_head')
        yield (f'{place}.kernel_generate_head', inner) if isinstance(inner, dict) else (place, head)


def several(value) -> bool:
    return isinstance(value, (list, tuple))


def image_size(tree: Mapping, default: tuple[int, int] | None = (512, 512)) -> tuple[int, int] | None:
    """Height and width of the training images: where the pipeline cuts them last, else as the preprocessor pads them."""
    found = None
    for node in nodes(tree.get('train_dataloader')):
        kind, value = type_name(node), node.get('crop_size') or node.get('scale') or node.get('size')
        if ('Crop' in kind or kind == 'Resize') and isinstance(value, (int, list, tuple)):
            value = (value, value) if isinstance(value, int) else tuple(value)
            if len(value) == 2 and all(isinstance(side, int) for side in value):
                found = value if 'crop_size' in node or 'Crop' in kind else value[::-1]  # Resize has (width, height)
    size = ((tree.get('model') or {}).get('data_preprocessor') or {}).get('size')
    if found is None and size:
        found = (size, size) if isinstance(size, int) else tuple(size)
    return found or default


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


def levels_of(head: Mapping) -> list[int]:
    """The level that each of a head's inputs is read from: those of ``in_index``, the last where it names none."""
    index = head.get('in_index', range(len(head['in_channels'])) if several(head.get('in_channels')) else -1)
    index = [index] if isinstance(index, int) else list(index)
    if type_name(head) == 'EncHead' and not head.get('add_lateral'):
        return index[-1:] * len(index)  # it names several and reads the last
    return index


def read_levels(model: Mapping) -> list[int] | None:
    """Indices of the levels of an AutoTimestepNeck's pyramid that the heads of a segmentor's config read.

    Args:
        model (Mapping): The config of an EncoderDecoder or a CascadeEncoderDecoder.

    Returns:
        list[int] | None: None where all may be read: no head says so by ``in_index``, or another neck stands between.

    Raises:
        ValueError: A head reads a level that there is not, or that the neck's ``levels`` leaves out.
    """
    neck = model.get('neck')
    if not isinstance(neck, Mapping) or type_name(neck) != 'AutoTimestepNeck' or neck.get('output') != 'pyramid':
        return None
    scales, read = neck.get('scales', SCALES), set()
    built = level_indices(neck.get('levels'), len(scales))
    for place, head in readers(model):
        if 'in_index' not in head and not isinstance(head.get('in_channels'), int):
            return None  # a head that takes all levels, as mask classifiers do
        for level in levels_of(head) + ([0] if head.get('c1_in_channels') else []):
            if not -len(scales) <= level < len(scales) or level % len(scales) not in built:
                raise ValueError(f'{place} {type_name(head)} reads level {level} (in_index), and the neck builds {list(built)} '
                                 f'of {len(scales)}: set in_index of the head, or levels and scales of AutoTimestepNeck')
            read.add(level % len(scales))
    return sorted(read) or None


def leave_out_levels(cfg: Config):
    """Has the neck build the levels that heads read and no others, where the config does not say which.

    Raises:
        ValueError: A head reads a level that the neck does not build.
    """
    read = read_levels(cfg.get('model') or {})
    if read is not None:
        cfg.model.neck.setdefault('levels', read)
