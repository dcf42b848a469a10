"""The images of a config's datasets, in their order and through its own pipelines, as caches are made from them."""
import copy
import json
import random

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from mmaselect.extract.numbers import check_batch_size

from ..configs import type_name
from ..sweep_images import naming_empty_set, of_one_size
from ..transforms import contents, identity

SPLITS = ('train', 'val', 'test')


class FixedItems(torch.utils.data.Dataset):
    """Items of a dataset as its pipeline gives them, each ((identity, contents), data).

    Raises:
        ValueError: A transform draws random numbers, or leaves an item out.
    """

    def __init__(self, dataset, places):
        self.dataset, self.places = dataset, places

    def __len__(self):
        return len(self.places)

    def __getitem__(self, position):
        data = self.dataset.get_data_info(self.places[position])
        number, before = (identity(data), contents(data)), _generators()
        for transform in self.dataset.pipeline.transforms:
            data = transform(data)
            if _generators() != before:
                raise ValueError(f'{type(transform).__name__} is random, and a cache holds one version of an image: remove it '
                                 'from the pipeline. Only RandomFlip right before the packing can stay')
            if data is None:
                raise ValueError(f'{type(transform).__name__} leaves out item {self.places[position]}: filter the dataset')
        return number, data


def _generators():
    """The states of all random generators that transforms draw from."""
    _, keys, *rest = np.random.get_state()
    return random.getstate(), keys.tobytes(), rest, torch.get_rng_state().numpy().tobytes()


def splits_of(cfg, names):
    """The named splits without those that repeat another's dataset, as test often does val's.

    Raises:
        ValueError: The config lacks one.
    """
    found = {}
    for name in names:
        loader = cfg.get(f'{name}_dataloader')
        if loader is None:
            raise ValueError(f'the config has no {name}_dataloader: name other splits with --split')
        if loader['dataset'] not in found.values():
            found[name] = loader['dataset']
    return list(found)


def dataset_of(cfg, split):
    """The dataset of a split without RandomFlip, its config as text, and whether there was a RandomFlip.

    Raises:
        ValueError: It joins several datasets, has no items, or its RandomFlip is not one that caches can follow.
    """
    dataset = copy.deepcopy(cfg[f'{split}_dataloader']['dataset'])
    while 'dataset' in dataset:  # RepeatDataset and the like give its items again
        dataset = dataset['dataset']
    if 'datasets' in dataset:
        raise ValueError(f'{split}_dataloader joins several datasets, whose items have the same numbers: cache one at a time')
    pipeline = dataset['pipeline']
    flips = [place for place, step in enumerate(pipeline) if type_name(step) in ('RandomFlip', 'FlipLatents')]
    for place in flips:
        if place != len(pipeline) - 2 or pipeline[place].get('direction', 'horizontal') != 'horizontal':
            raise ValueError('RandomFlip can stay where it flips horizontally and is the last before the packing: move or '
                             'remove it')
        del pipeline[place]
    with naming_empty_set(dataset, dict(train='training', val='validation').get(split, split)):
        return DATASETS.build(dataset), json.dumps(dataset, default=str), bool(flips)


class SplitImages:
    """A split's images as a model's data_preprocessor gives them, in batches.

    Args:
        cfg (Config): The config.
        model (BaseModel): On its device.
        split (str): One of SPLITS.
        batch_size (int): At most so many images, of one size, at a time.
    """

    def __init__(self, cfg, model, split, batch_size):
        check_batch_size(batch_size)
        self.dataset, dataset, self.flips = dataset_of(cfg, split)
        if split == 'train' and getattr(model.data_preprocessor, 'batch_augments', None):
            raise ValueError('the data_preprocessor mixes the images of a batch (batch_augments), which a cache cannot follow: '
                             'remove it')
        self.preprocess, self.split, self.batch_size = model.data_preprocessor, split, batch_size
        self.workers = cfg[f'{split}_dataloader'].get('num_workers', 0)
        moments = {name: buffer.tolist() for name, buffer in model.data_preprocessor.named_buffers()}  # mean and std
        self.about = dict(split=split, dataset=dataset, contents=True, data_preprocessor=json.dumps(
            [cfg.model.get('data_preprocessor'), moments], default=str))

    def __len__(self):
        return len(self.dataset)

    def batches(self, places):
        """The items at ``places``: batches of ((identity, contents) each, images (B, 3, H, W), data samples)."""
        loader = torch.utils.data.DataLoader(FixedItems(self.dataset, places), batch_size=None, num_workers=self.workers,
                                             generator=torch.Generator())
        for numbers, images, samples in of_one_size((self._prepared(*item) for item in loader), self.batch_size):
            yield numbers, torch.stack(images), samples

    def _prepared(self, number, data):
        batch = self.preprocess(pseudo_collate([data]), False)
        return number, batch['inputs'][0], batch['data_samples'][0]
