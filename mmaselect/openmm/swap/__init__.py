"""Puts a DiT in the place of the backbone of any config of MMSegmentation or MMPretrain.

``swap`` works on the config alone. What the heads read is found by building them, and the backbone that was there, on PyTorch's
meta device: shapes without weights, in about a second.
"""
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmaselect.extract import resolve
from mmaselect.extract.sizes import sizes

from ..configs import nodes, type_name
from .base import Reader
from .classifier import Classifier
from .outline import SwapError
from .segmentor import Segmentor

TOOLBOXES = {'EncoderDecoder': 'mmseg', 'CascadeEncoderDecoder': 'mmseg', 'ImageClassifier': 'mmpretrain'}


@dataclass
class Swapped:
    """A swapped ``cfg``, what its heads read, and ``remarks`` on what a user may want to look at."""
    cfg: Config
    readers: list[Reader]
    remarks: list[str] = field(default_factory=list)


def swap(cfg: Config, pretrained: str | None = None, taps: Sequence | None = None, *, backbone: Mapping | None = None,
         neck: Mapping | None = None) -> Config:
    """The config with a DiTBackbone in place of its backbone, an AutoTimestepNeck behind it, and all else fitted to them.

    Heads keep their kind, losses and classes, and a stock neck stays between ours and the heads. Levels of a pyramid get the
    strides that the old backbone's had. Data, schedule and everything else stay.

    Args:
        cfg (Config): Of an EncoderDecoder, CascadeEncoderDecoder or ImageClassifier. Not changed.
        pretrained (str | None): Folder or Hugging Face hub id of the DiT. Only its configs are read.
        taps (Sequence[tuple[int, str]] | None): Features of the DiT, one for all levels or one for each that is read. By default
            block outputs between 0.3 and 0.7 of the depth, or the middle one for a single level.
        backbone (Mapping | None): Further options of DiTBackbone, such as dict(frozen=False), or ``arch`` in place of
            ``pretrained``.
        neck (Mapping | None): Further options of AutoTimestepNeck.

    Returns:
        Config: A new one. ``explain`` gives it together with a table and remarks.

    Raises:
        SwapError: The config cannot be swapped.
        FileNotFoundError, ValueError: As ``extract.sizes.sizes`` and ``extract.resolve``.
    """
    return explain(cfg, pretrained, taps, backbone=backbone, neck=neck).cfg


def explain(cfg: Config, pretrained: str | None = None, taps: Sequence | None = None, *, backbone: Mapping | None = None,
            neck: Mapping | None = None) -> Swapped:
    """As ``swap``, with what the heads read and with remarks."""
    tree = copy.deepcopy(cfg.to_dict())
    model = tree.get('model')
    if not isinstance(model, dict) or not model.get('type'):
        raise SwapError('the config has no model')
    kind, toolbox = type_name(model), TOOLBOXES.get(type_name(model))
    if toolbox is None:
        raise SwapError(f'the model is a {kind}, and only {", ".join(TOOLBOXES)} read a backbone that can be swapped')
    if tree.get('default_scope') not in (None, toolbox):
        raise SwapError(f"default_scope is {tree['default_scope']!r}, of another toolbox, and {kind} is of {toolbox}")
    if any(type_name(node) == 'DiTBackbone' for node in nodes(model)):
        raise SwapError('the backbone is a DiTBackbone already')
    if not isinstance(model.get('backbone'), dict):
        raise SwapError('the model has no backbone')
    tree['default_scope'] = toolbox
    options = {**(dict(pretrained=pretrained) if pretrained else {}), **(backbone or {})}
    if ('pretrained' in options) == ('arch' in options):
        raise SwapError('name the DiT: a folder or hub id as pretrained, or sizes of one with random weights as backbone.arch')
    dit = sizes(options.get('arch') or options['pretrained'])
    if taps is not None:
        taps = resolve([tuple(tap) for tap in taps], dit.depth)
    job = (Segmentor if toolbox == 'mmseg' else Classifier)(tree, dit, taps, options, dict(neck or {}))
    with DefaultScope.overwrite_default_scope(toolbox), torch.no_grad():
        job.run()
    return Swapped(Config(tree, filename=cfg.filename), job.readers, job.remarks)
