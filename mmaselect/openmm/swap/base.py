"""What swapping the backbone of a segmentor and of a classifier have in common."""
import copy
import math
from dataclasses import dataclass

import torch

from mmaselect.extract.sizes import Sizes

from ..configs import class_name, heads, image_size, nodes, type_name
from .outline import SwapError, built

LAYER_DECAY = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor',
               'LearningRateDecayOptimWrapperConstructor')
HOOK = dict(type='mmaselect.AutoTimestepHook')


@dataclass
class Reader:
    """A head and what it reads: of each map the channels, the pixels per cell (None of a vector), and the taps behind it."""
    place: str
    head: str
    maps: list[tuple[int, float | None, tuple]]


class Swap:
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
        native, crop = self.dit.image_size, image_size(self.tree, None)
        if crop and native and any(side != native for side in crop):
            height, width = crop
            self.remarks.append(f'images of {height}x{width} pixels meet a DiT that was trained at {native}x{native}: '
                                'model.backbone.pos_scale says how its positions follow, and a checkpoint of that size may do '
                                'better')

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
        if class_name(wrapper.get('constructor')) in LAYER_DECAY and rate:
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


def spread(depth: int, count: int) -> tuple[tuple[int, str], ...]:
    """Block outputs for ``count`` levels, evenly between 0.3 and 0.7 of the depth; one for all where there are too few blocks."""
    places = [0.3 + 0.4 * k / (count - 1) for k in range(count)] if count > 1 else [0.5]
    blocks = sorted({min(depth - 1, round(depth * place)) for place in places})
    return tuple((block, 'hidden') for block in (blocks if len(blocks) == count else [min(depth - 1, round(0.7 * depth))]))
