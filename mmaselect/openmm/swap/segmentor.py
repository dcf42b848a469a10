"""Swaps the backbone of a segmentor: heads read maps of several levels."""
import json
import math

import torch

from ..configs import heads, levels_of, readers, several, type_name
from .base import Reader, Swap
from .outline import SwapError, importable, outline, without_weights

SCALES = (4, 2, 1, 0.5)  # that the neck can give of a map
# Heads that read something that no other backbone than theirs gives.
TIED = {
    'PIDHead': 'the three branches of PIDNet', 'DDRHead': 'the two branches of DDRNet', 'DPTHead': 'the class token of a ViT',
    'SideAdapterCLIPHead': "CLIP's own features", 'VPDDepthHead': "the features of Stable Diffusion's U-Net"}
OPERATORS = ('CCHead', 'PSAHead', 'PointHead')
MMDET = ('Mask2FormerHead', 'MaskFormerHead')
# Stock necks that make a pyramid of a ViT's maps, as AutoTimestepNeck does; every other is kept behind it.
REPLACED_NECKS = ('Feature2Pyramid',)
OUTLINES = {}  # of backbones that were looked at


class Segmentor(Swap):
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
        stock = self.model.get('neck')
        if several(stock):
            raise SwapError('the model has a list of necks, and one alone can be kept: make one of them')
        before, after = self.outline()
        if stock and type_name(stock) in REPLACED_NECKS:
            before, stock = after, None
        if stock and not isinstance(stock.get('in_channels'), (list, tuple)):
            raise SwapError(f'neck {type_name(stock)} has no list of in_channels, so its levels are not known')
        indices = {}
        for place, head in readers(self.model):
            indices[place] = levels_of(head)
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
            stock['in_channels'] = type(stock['in_channels'])([self.features()[0].shape[1]] * len(read))
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

    def outline(self):
        """Pixels per cell of the maps that the old backbone gives, and of those that reach the heads behind its neck."""
        parts = without_weights(self.model['backbone']), self.model.get('neck')
        key = json.dumps(parts, sort_keys=True, default=repr)  # many configs share a backbone
        if key not in OUTLINES:
            OUTLINES[key] = outline(*parts)
        return OUTLINES[key]
