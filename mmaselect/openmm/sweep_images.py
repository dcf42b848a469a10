"""The images that the sweep looks at: a seeded sample of the training set, as the model's data_preprocessor gives them."""
import contextlib
import copy
import functools
import itertools
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_dist_info
from mmengine.registry import DATASETS
from torch import Tensor, nn

from mmaselect.extract.noise import mix
from mmaselect.selection import SelectionPolicy

from .configs import type_name


class Sample(torch.utils.data.Dataset):
    """Some items of a dataset, each (index, data), and always the same: random transforms are seeded by the index."""

    def __init__(self, dataset, indices, seed):
        self.dataset, self.indices, self.seed = dataset, indices, seed

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        index = self.indices[position]
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed = mix(self.seed, index) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # the one that is set back, where torch.manual_seed seeds the GPUs' too
        try:
            return index, self.dataset[index]
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])


REPEATING = ('RepeatDataset', 'ClassBalancedDataset', 'MultiImageMixDataset')  # wrappers that repeat or mix a set's images


def dataset_config(cfg: Config) -> ConfigDict:
    """The training set as the sweep looks at it: each image once, whole, and not augmented.

    Wrappers that repeat or mix images are left out, for a score must not predict an image from its own copies. The pipeline is
    that of validation, else of testing. Where neither has one, the training pipeline stays and a warning says so.

    Raises:
        ValueError: The config has no train_dataloader.
    """
    if cfg.get('train_dataloader') is None:
        raise ValueError('the sweep takes its images from train_dataloader, which this config lacks: fix '
                         'backbone.timestep or load a checkpoint that has one')
    dataset = _distinct(copy.deepcopy(cfg.train_dataloader['dataset']))
    pipelines = [inner.get('pipeline') for loader in (cfg.get('val_dataloader'), cfg.get('test_dataloader')) if loader
                 for inner in inner_datasets(loader['dataset'])]
    # A pipeline of test-time augmentation gives several images per item.
    pipeline = next((steps for steps in pipelines
                     if steps and not any(type_name(step).endswith('TestTimeAug') for step in steps)), None)
    if pipeline is None:
        warnings.warn('neither validation nor testing has a pipeline, so that the sweep looks at images of the training '
                      'pipeline, augmented as they are: give val_dataloader.dataset a pipeline', stacklevel=2)
    for inner in inner_datasets(dataset) if pipeline else ():
        inner['pipeline'] = copy.deepcopy(pipeline)
    return dataset


def inner_datasets(dataset: ConfigDict) -> list[ConfigDict]:
    """The dataset configs inside wrappers such as RepeatDataset, ConcatDataset and KFoldDataset; itself where it wraps none."""
    wrapped = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
    return [inner for one in wrapped for inner in inner_datasets(one)] if wrapped else [dataset]


def _distinct(dataset: ConfigDict) -> ConfigDict:
    """The config without wrappers that repeat or mix images, and without the second of two equal datasets that are joined."""
    if type_name(dataset) in REPEATING:
        return _distinct(dataset['dataset'])
    if 'dataset' in dataset:
        dataset['dataset'] = _distinct(dataset['dataset'])
    if 'datasets' in dataset:
        parts = [_distinct(one) for one in dataset['datasets']]
        dataset['datasets'] = [one for index, one in enumerate(parts) if one not in parts[:index]]
    return dataset


@contextlib.contextmanager
def naming_empty_set(dataset: ConfigDict, name: str) -> Iterator[None]:
    """Says plainly that the dataset called ``name`` is empty, where building it fails for that: MMEngine's BaseDataset joins what
    it knows of its items, and cannot join nothing."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array' not in str(error):
            raise
        roots = ', '.join(str(inner.get('data_root')) for inner in inner_datasets(dataset))
        raise ValueError(f'the {name} set is empty: {roots} has no images where the config looks for them') from error


def centre_crop(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Cuts (..., H, W) to at most ``size`` (height, width) pixels around its middle."""
    if size is None:
        return image
    top, left = (max(0, (have - want) // 2) for have, want in zip(image.shape[-2:], size, strict=True))
    return image[..., top:top + size[0], left:left + size[1]]


def of_one_size(items: Iterator[tuple], most: int) -> Iterator[tuple]:
    """Batches of at most so many items in a row whose second part, an image, has the same size: a tuple of each part's values."""
    for _, group in itertools.groupby(items, key=lambda item: item[1].shape):
        while chunk := list(itertools.islice(group, most)):
            yield tuple(zip(*chunk, strict=True))


def label_of(data_sample: Any, image: Tensor) -> Tensor | None:
    """The class of an image, or the classes of its pixels (H, W), as a tensor; None where there is no one such label."""
    if data_sample is None:
        return None
    if 'gt_label' in data_sample and data_sample.gt_label.numel() == 1:
        return data_sample.gt_label.reshape(()).long()
    if 'gt_sem_seg' in data_sample:
        mask = data_sample.gt_sem_seg.data[None].float()  # (1, 1, h, w), of the original size where the pipeline resized
        _, right, _, bottom = data_sample.get('img_padding_size', (0, 0, 0, 0))  # by the data_preprocessor
        height, width = image.shape[-2] - bottom, image.shape[-1] - right
        return F.pad(F.interpolate(mask, (height, width), mode='nearest'), (0, right, 0, bottom), value=255)[0, 0].long()
    return None


def training_sample(cfg: Config, model: nn.Module, policy: SelectionPolicy, count: int | None = None) -> 'SweepImages':
    """Training images for a policy: ``count`` of them, or as many as it looks at."""
    size = policy.image_size or getattr(model.data_preprocessor, 'size', None)
    return SweepImages(cfg, model, count or policy.most_images, (size, size) if isinstance(size, int) else size, policy.seed)


class SweepImages:
    """A sample of the training images with their labels, as ``selection.sweep`` takes them.

    The sample is drawn at random from the whole set, since many sets are sorted by class, and shared out by position: it is
    the same for any number of ranks. The Runner's own training dataloader is left alone, for its sampler does not rewind.
    Labels come along for scores that ask for them.

    Args:
        cfg (Config): With ``train_dataloader``.
        model (BaseModel): For its data_preprocessor.
        num_images (int): Of all ranks; all of the set where it has fewer.
        size (tuple[int, int] | None): Height and width in pixels that larger images are cut to.
        seed (int): Of the sample.
        batch_size (int): Images per batch.

    Raises:
        ValueError: The set is empty.
    """

    def __init__(self, cfg, model, num_images, size, seed, batch_size=16):
        config = dataset_config(cfg)
        with naming_empty_set(config, 'training'):
            self.dataset = DATASETS.build(config)
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(seed))[:num_images]
        self.order = order.tolist()
        self.preprocess, self.size, self.seed, self.batch_size = model.data_preprocessor, size, seed, batch_size
        self.workers = cfg.train_dataloader.get('num_workers', 0)

    @functools.cached_property
    def label_kind(self) -> str | None:
        """What has a label of its own, 'image' or 'pixel', or None where nothing has, or some images have several labels."""
        label = next(self._prepared(self.order[:1]))[2]
        if label is None or label.ndim:
            return None if label is None else 'pixel'
        info = getattr(self.dataset, 'get_data_info', lambda index: {})
        return 'image' if all(np.ndim(info(index).get('gt_label')) == 0 for index in self.order) else None

    @property
    def classes(self) -> int | None:
        """How many classes the set names, which labels have to be among, or None."""
        return len(self.dataset.metainfo.get('classes') or ()) or None

    num_classes = classes  # of a sample as large as scores with labels want

    def __len__(self):
        return len(self.order)

    def batches(self, start: int, stop: int) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
        """This rank's share of the sample from ``start`` to ``stop``: batches of (indices, images, labels or None)."""
        rank, ranks = get_dist_info()
        share = self.order[start:stop][(rank - start) % ranks::ranks]
        for indices, images, labels in of_one_size(self._prepared(share), self.batch_size):
            some = any(label is None for label in labels)  # such as in a set of several labels per image
            yield list(indices), torch.stack(images), None if some else torch.stack(labels)

    def _prepared(self, indices):
        loader = torch.utils.data.DataLoader(Sample(self.dataset, indices, self.seed), batch_size=None,
                                             num_workers=self.workers, generator=torch.Generator().manual_seed(self.seed))
        for index, data in loader:
            batch = self.preprocess(pseudo_collate([data]), False)
            image = batch['inputs'][0]
            label = label_of((batch.get('data_samples') or [None])[0], image)
            if label is not None and label.ndim:
                label = centre_crop(label, self.size)
            yield index, centre_crop(image, self.size), label
