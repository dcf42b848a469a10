"""Puts a DiT in the place of the backbone of any config of MMSegmentation or MMPretrain.

``swap`` works on the config alone. What the heads read is found by building them, and the backbone that was there, on PyTorch's
meta device: shapes without weights, in about a second.
"""
import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmaselect.extract import resolve
from mmaselect.extract.sizes import Sizes, sizes

from .configs import nodes, type_name
from .outline import SwapError, built, heads, image_size, importable, outline, readers, several, without_weights

TOOLBOXES = {'EncoderDecoder': 'mmseg', 'CascadeEncoderDecoder': 'mmseg', 'ImageClassifier': 'mmpretrain'}
SCALES = (4, 2, 1, 0.5)  # that the neck can give of a map
# Heads that read something that no other backbone than theirs gives.
TIED = {
    'PIDHead': 'the three branches of PIDNet', 'DDRHead': 'the two branches of DDRNet', 'DPTHead': 'the class token of a ViT',
    'SideAdapterCLIPHead': "CLIP's own features", 'VPDDepthHead': "the features of Stable Diffusion's U-Net"}
OPERATORS = ('CCHead', 'PSAHead', 'PointHead')
MMDET = ('Mask2FormerHead', 'MaskFormerHead')
# Stock necks that make a pyramid of a ViT's maps, as AutoTimestepNeck does; every other is kept behind it.
REPLACED_NECKS = ('Feature2Pyramid',)
# Classification heads that read what only their own backbone gives (class tokens, two branches, distillation, or logits), and
# which head classifies in the same way.
REPLACED_HEADS = {
    **dict.fromkeys(('VisionTransformerClsHead', 'DeiTClsHead', 'LeViTClsHead', 'ConformerHead', 'EfficientFormerClsHead',
                     'VigClsHead', 'ClsHead'), 'LinearClsHead'),
    'MultiLabelClsHead': 'MultiLabelLinearClsHead'}
KEPT_OPTIONS = ('loss', 'topk', 'cal_acc', 'thr')  # of a head that is replaced
LAYER_DECAY = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor',
               'LearningRateDecayOptimWrapperConstructor')
OUTLINES = {}  # of backbones that were looked at
HOOK = dict(type='mmaselect.AutoTimestepHook')


@dataclass
class Reader:
    """A head and what it reads: of each map the channels, the pixels per cell (None of a vector), and the taps behind it."""
    place: str
    head: str
    maps: list[tuple[int, float | None, tuple]]


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
    job = (_Segmentor if toolbox == 'mmseg' else _Classifier)(tree, dit, taps, options, dict(neck or {}))
    with DefaultScope.overwrite_default_scope(toolbox), torch.no_grad():
        job.run()
    return Swapped(Config(tree, filename=cfg.filename), job.readers, job.remarks)


class _Swap:
    """What segmentors and classifiers have in common. ``tree`` is changed."""

    def __init__(self, tree, dit: Sizes, taps, options, neck):
        self.tree, self.model, self.dit, self.taps = tree, tree['model'], dit, taps
        self.options, self.neck_options = options, neck
        self.readers, self.remarks, self.built = [], [], {}
        self.size = image_size(tree)

    def run(self):
        self.check()
        self.fit()
        self.images()
        self.weights()
        self.optimizer()
        self.environment()

    def place_dit(self, count, **neck):
        """Puts backbone and neck in, which read ``count`` taps, and returns how many there are in fact: one feeds all."""
        if self.taps is None:
            self.taps = spread(self.dit.depth, count)
        self.model['backbone'] = dict(type='mmaselect.DiTBackbone', **{**self.options, 'taps': list(self.taps)})
        self.model['neck'] = dict(type='mmaselect.AutoTimestepNeck', in_channels=self.dit.width, num_taps=len(self.taps),
                                  **{**neck, **self.neck_options})

    def features(self, device='meta', size=None):
        """What backbone and neck give of a batch of two images, as a tuple of maps or vectors."""
        height, width = (math.ceil(side / self.dit.token_stride) for side in size or self.size)
        neck = self.build('neck', self.model['neck'], device)
        ours = neck[0] if isinstance(neck, torch.nn.Sequential) else neck
        return neck([torch.zeros(2, self.dit.width, height, width, device=device) for _ in ours.norms])

    def build(self, place, config, device='meta'):
        """Builds a part without weights, and keeps it for the names of its parameters."""
        self.built[place] = built(config, device)
        return self.built[place]

    def fits(self, place, head, maps, call):
        """Builds a head and lets it read ``maps``, or where it needs numbers those of small images on the CPU.

        Raises:
            SwapError: It cannot.
        """
        errors = []
        for device in ('meta', 'cpu'):
            try:
                found = maps if device == 'meta' else self.features('cpu', (128, 128))
                return call(self.build(place, head, device), found)
            except Exception as error:  # whatever a toolbox's or a user's own head raises
                errors.append(error)
        raise SwapError(f'{place} {type_name(head)} cannot read what stands in for {self.old}: {type(errors[0]).__name__}: '
                        f'{errors[0]}')

    def images(self):
        """Images become [-1, 1] in the order RGB, which the VAE expects."""
        key = 'bgr_to_rgb' if self.tree['default_scope'] == 'mmseg' else 'to_rgb'
        holder = self.model if self.model.get('data_preprocessor') else self.tree
        preprocessor = holder['data_preprocessor'] = dict(holder.get('data_preprocessor') or {})
        preprocessor.update(mean=[127.5] * 3, std=[127.5] * 3)
        # The datasets that hold arrays instead of files, such as CIFAR's, give RGB, as their configs say by to_rgb=False.
        files = any(type_name(node) == 'LoadImageFromFile' for node in nodes(self.tree.get('train_dataloader')))
        if not preprocessor.get(key) and (files or key not in preprocessor):
            preprocessor[key] = True
        native = self.dit.image_size
        if self.crop and native and any(side != native for side in self.crop):
            height, width = self.crop
            self.remarks.append(f'images of {height}x{width} pixels meet a DiT that was trained at {native}x{native}: '
                                'model.backbone.pos_scale says how its positions follow, and a checkpoint of that size may do '
                                'better')

    @property
    def crop(self):
        return image_size(self.tree, None)

    def weights(self):
        """Takes away what was to be loaded into, or done to, the old backbone."""
        recipe = self.model.get('init_cfg')
        for key in {'pretrained', 'init_cfg'} & self.model.keys():
            self.model[key] = None
        # Of the whole model it would reach into the DiT, and replace its weights by random ones.
        recipe = [one for one in (recipe if isinstance(recipe, list) else [recipe]) if one and one.get('type') != 'Pretrained']
        for _, head in heads(self.model):
            if recipe and not head.get('init_cfg'):
                head['init_cfg'] = copy.deepcopy(recipe)
        if self.tree.get('load_from'):
            self.remarks.append(f"load_from={self.tree['load_from']} is of the old model, and is left out")
            self.tree['load_from'] = None

    def optimizer(self):
        """Settings per parameter: those that named the old backbone's go, and a decay by layers becomes ours."""
        wrapper = self.tree.get('optim_wrapper') or {}
        settings = wrapper.get('paramwise_cfg')
        if not settings:
            return
        rate = settings.get('layer_decay_rate', settings.get('decay_rate'))
        if str(wrapper.get('constructor')).rpartition('.')[2] in LAYER_DECAY and rate:
            wrapper.update(constructor='mmaselect.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=rate))
            return
        keys = settings.get('custom_keys') or {}
        names = [f'{place}.{name}' for place, part in self.built.items() for name, _ in part.named_parameters()]
        if self.options.get('frozen', True) and not self.options.get('lora'):  # else any may mean a weight of the DiT
            for key in [key for key in keys if key != 'backbone' and not any(key in name for name in names)]:
                del keys[key]
        if 'custom_keys' in settings and not keys:
            del settings['custom_keys']
        if not settings:
            wrapper['paramwise_cfg'] = None

    def environment(self):
        """Imports our package, and appends the hook that chooses the timestep."""
        imports = self.tree.get('custom_imports') or {}
        modules = imports.get('imports') or []
        modules = [modules] if isinstance(modules, str) else list(modules)
        self.tree['custom_imports'] = dict(imports, imports=[*modules, 'mmaselect'], allow_failed_imports=False)
        self.tree['custom_hooks'] = [*(self.tree.get('custom_hooks') or []), dict(HOOK)]


class _Segmentor(_Swap):
    """An EncoderDecoder or CascadeEncoderDecoder: heads read maps of several levels by their place."""

    def check(self):
        found = list(heads(self.model))
        if not any(place.startswith('decode_head') for place, _ in found):
            raise SwapError('the model has no decode_head')
        for place, head in found:
            kind = type_name(head)
            if kind in TIED:
                raise SwapError(f'{place} {kind} reads {TIED[kind]}, which no other backbone gives')
            if kind in MMDET and not importable('mmdet'):
                raise SwapError(f'{place} {kind} needs mmdet, which is not installed')
            if kind in OPERATORS and not importable('mmcv.ops'):
                raise SwapError(f'{place} {kind} needs compiled operators of mmcv, which are not installed')

    def fit(self):
        self.old = type_name(self.model['backbone'])
        before, after = self.outline()
        stock = self.model.get('neck')
        if stock and type_name(stock) in REPLACED_NECKS:
            before, stock = after, None
        if stock and not isinstance(stock.get('in_channels'), (list, tuple)):
            raise SwapError(f'neck {type_name(stock)} has no list of in_channels, so its levels are not known')
        indices = {}
        for place, head in readers(self.model):
            index = head.get('in_index', range(len(head['in_channels'])) if several(head.get('in_channels')) else -1)
            indices[place] = [index] if isinstance(index, int) else list(index)
            if type_name(head) == 'EncHead' and not head.get('add_lateral'):
                indices[place] = indices[place][-1:] * len(indices[place])  # it names all and reads the last
            for one in indices[place]:
                if not -len(after) <= one < len(after):
                    raise SwapError(f'{place} {type_name(head)} reads level {one}, and {self.old} gives {len(after)} levels, '
                                    f'0 to {len(after) - 1}')
        finest = [0] if any(head.get('c1_in_channels') for _, head in heads(self.model)) else []  # taken apart from in_index
        read = list(range(len(before))) if stock else \
            sorted({one % len(after) for found in (*indices.values(), finest) for one in found})
        if self.taps is not None and len(self.taps) not in (1, len(read)):
            raise SwapError(f'{len(self.taps)} taps cannot feed the {len(read)} levels that are read by '
                            f'{", ".join(f"{place} {type_name(head)}" for place, head in heads(self.model))}: give one tap, or '
                            f'{len(read)}')
        wanted = [before[k] for k in read]  # pixels per cell
        scales = [min(SCALES, key=lambda scale, own=one: abs(math.log2(self.dit.token_stride / scale / own))) for one in wanted]
        self.place_dit(len(read), output='pyramid', scales=scales, norm='layer')
        given = [self.dit.token_stride / scale for scale in scales]
        coarse = [f'{have:g} in place of {want:g}' for have, want in zip(given, wanted, strict=True) if have > 1.5 * want]
        if coarse:
            self.remarks.append(f'levels are coarser than those of {self.old}, in pixels per cell: {", ".join(coarse)}')
        if stock:
            stock['in_channels'] = type(stock['in_channels'])([self.width()] * len(read))
            self.model['neck'] = [self.model['neck'], stock]
        else:
            indices = {place: [read.index(one % len(after)) for one in found] for place, found in indices.items()}
        maps = self.features()
        self.connect(maps, indices, given, stock)

    def connect(self, maps, indices, strides, stock):
        """Gives each head the channels and places of its maps, and lets it read them."""
        tap = (lambda k: self.taps[k if len(self.taps) > 1 else 0]) if not stock else (lambda k: tuple(self.taps))
        previous = {}
        for place, head in readers(self.model):
            channels = [maps[k].shape[1] for k in indices[place]]
            pixels = [strides[k] if not stock else self.size[0] / maps[k].shape[2] for k in indices[place]]
            self.readers.append(Reader(place, type_name(head), [
                (count, size, tap(k)) for count, size, k in zip(channels, pixels, indices[place], strict=True)]))
            kind = type(head.get('in_channels'))
            head['in_channels'] = kind(channels) if kind in (list, tuple) else channels[0]
            if 'in_index' in head or not stock:
                head['in_index'] = kind(indices[place]) if kind in (list, tuple) else indices[place][0]
            if head.get('c1_in_channels'):
                head['c1_in_channels'] = maps[0].shape[1]
            if head.get('num_convs') == 0 and not head.get('concat_input', True):
                head['channels'] = channels[0]  # the head is its classifier, and takes no other width
        for place, head in heads(self.model):
            if type_name(head) == 'PointHead':  # reads points, which only a training or a prediction draws
                continue
            part = place.split('[')[0]

            def call(module, found, place=place, part=part):
                cascade = part in previous and part == 'decode_head'
                return module(found, previous[part].to(found[-1].device)) if cascade else module(found)

            result = self.fits(place, head, maps, call)
            if isinstance(result, torch.Tensor):
                previous[part] = result

    def width(self):
        return self.features()[0].shape[1]

    def outline(self):
        """Pixels per cell of the maps that the old backbone gives, and of those that reach the heads behind its neck."""
        parts = without_weights(self.model['backbone']), self.model.get('neck')
        key = json.dumps(parts, sort_keys=True, default=repr)  # many configs share a backbone
        if key not in OUTLINES:
            OUTLINES[key] = outline(*parts)
        return OUTLINES[key]


class _Classifier(_Swap):
    """An ImageClassifier: its head reads one vector or, with CSRA's attention, one map."""

    def check(self):
        if not self.model.get('head'):
            raise SwapError('the model has no head, so there is nothing to train')
        from mmpretrain.registry import BATCH_AUGMENTS
        for augment in nodes((self.model.get('train_cfg') or {}).get('augments')):
            if augment.get('type') and BATCH_AUGMENTS.get(augment['type']) is None:
                raise SwapError(f"train_cfg names the batch augment {augment['type']}, which mmpretrain does not have: the "
                                'config does not build as it is either')

    def fit(self):
        self.old, head = type_name(self.model['backbone']), self.model['head']
        kind = type_name(head)
        if kind in REPLACED_HEADS:
            preprocessor = self.model.get('data_preprocessor') or self.tree.get('data_preprocessor') or {}
            counts = [place.get('num_classes') for place in (head, self.model['backbone'], preprocessor)]
            if not any(counts):
                raise SwapError(f'head {kind} belongs to {self.old}, and neither says how many classes there are: set '
                                'model.head.num_classes')
            head = dict(type=REPLACED_HEADS[kind], num_classes=next(filter(None, counts)),
                        **{key: head[key] for key in KEPT_OPTIONS if key in head})
            self.model['head'] = head
            self.remarks.append(f'{kind} belongs to {self.old}: {head["type"]} classifies in its place, with the same classes '
                                'and the same loss')
        if self.model.get('neck'):
            names = [type_name(one) for one in nodes(self.model['neck']) if type_name(one)]
            self.remarks.append(f'{", ".join(names)} of {self.old} made the vector that AutoTimestepNeck makes now')
        self.place_dit(1 if self.taps is None else len(self.taps), output='map' if kind == 'CSRAClsHead' else 'vector',
                       norm='channel')
        found = self.features()
        head['in_channels'] = found[-1].shape[1]
        self.fits('head', head, found, lambda module, maps: module(tuple(maps)))
        stride = self.dit.token_stride if found[-1].ndim == 4 else None
        self.readers.append(Reader('head', type_name(head), [(head['in_channels'], stride, tuple(self.taps))]))


def spread(depth: int, count: int) -> tuple[tuple[int, str], ...]:
    """Block outputs for ``count`` levels, evenly between 0.3 and 0.7 of the depth; one for all where there are too few blocks."""
    places = [0.3 + 0.4 * k / (count - 1) for k in range(count)] if count > 1 else [0.5]
    blocks = sorted({min(depth - 1, round(depth * place)) for place in places})
    return tuple((block, 'hidden') for block in (blocks if len(blocks) == count else [min(depth - 1, round(0.7 * depth))]))
