"""Swaps the backbone of a classifier: its head reads one vector."""
from ..configs import nodes, type_name
from .base import Reader, Swap
from .outline import SwapError

# Heads that read what only their own backbone gives (class tokens, two branches, distillation, or logits), and which head
# classifies in the same way.
REPLACED_HEADS = {
    **dict.fromkeys(('VisionTransformerClsHead', 'DeiTClsHead', 'LeViTClsHead', 'ConformerHead', 'EfficientFormerClsHead',
                     'VigClsHead', 'ClsHead'), 'LinearClsHead'),
    'MultiLabelClsHead': 'MultiLabelLinearClsHead'}
KEPT_OPTIONS = ('loss', 'topk', 'cal_acc', 'thr')  # of a head that is replaced


class Classifier(Swap):
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
