"""Writes caches of a config's latents and features: its datasets in their order, through its own pipelines."""
import copy
import itertools
import json
import random
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from tqdm import tqdm

from mmaselect.extract import cache
from mmaselect.extract.fingerprint import weights_hash

from . import launch
from .backbone import DiTBackbone
from .cached import identity
from .fusion import Attention
from .modules import find_module, unwrap
from .neck import AttentionPool, AutoTimestepNeck
from .norms import LayerNorm2d
from .sweep_images import naming_empty_set

SPLITS = ('train', 'val', 'test')
PER_CELL = (LayerNorm2d, Attention, AttentionPool)  # parts of a neck that mix the channels of a cell


class Steady(torch.utils.data.Dataset):
    """Items of a dataset as its pipeline gives them, each (identity, data).

    Raises:
        ValueError: A transform draws random numbers, or leaves an item out.
    """

    def __init__(self, dataset, places):
        self.dataset, self.places = dataset, places

    def __len__(self):
        return len(self.places)

    def __getitem__(self, position):
        data = self.dataset.get_data_info(self.places[position])
        number, before = identity(data), _generators()
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
    """The dataset of a split without RandomFlip, its pipeline as text, and whether there was a RandomFlip.

    Raises:
        ValueError: It joins several datasets, has no items, or its RandomFlip is not one that caches can follow.
    """
    dataset = copy.deepcopy(cfg[f'{split}_dataloader']['dataset'])
    while 'dataset' in dataset:  # RepeatDataset and the like give its items again
        dataset = dataset['dataset']
    if 'datasets' in dataset:
        raise ValueError(f'{split}_dataloader joins several datasets, whose items have the same numbers: cache one at a time')
    pipeline = dataset['pipeline']
    flips = [place for place, step in enumerate(pipeline) if launch.type_name(step) in ('RandomFlip', 'FlipLatents')]
    for place in flips:
        if place != len(pipeline) - 2 or pipeline[place].get('direction', 'horizontal') != 'horizontal':
            raise ValueError('RandomFlip can stay where it flips horizontally and is the last before the packing: move or '
                             'remove it')
        del pipeline[place]
    with naming_empty_set(dataset, dict(train='training', val='validation').get(split, split)):
        return DATASETS.build(dataset), json.dumps(pipeline, default=str), bool(flips)


class Source:
    """A split's images as a model's data_preprocessor gives them, in batches.

    Args:
        cfg (Config): The config.
        model (BaseModel): On its device.
        split (str): One of SPLITS.
        batch_size (int): At most so many images, of one size, at a time.
    """

    def __init__(self, cfg, model, split, batch_size):
        self.dataset, pipeline, self.flips = dataset_of(cfg, split)
        if split == 'train' and getattr(model.data_preprocessor, 'batch_augments', None):
            raise ValueError('the data_preprocessor mixes the images of a batch (batch_augments), which a cache cannot follow: '
                             'remove it')
        self.preprocess, self.split, self.batch_size = model.data_preprocessor, split, batch_size
        self.workers = cfg[f'{split}_dataloader'].get('num_workers', 0)
        self.about = dict(split=split, pipeline=pipeline,
                          data_preprocessor=json.dumps(cfg.model.get('data_preprocessor'), default=str))

    def __len__(self):
        return len(self.dataset)

    def batches(self, places):
        """The items at ``places``: batches of (identities, images (B, 3, H, W), data samples)."""
        loader = torch.utils.data.DataLoader(Steady(self.dataset, places), batch_size=None, num_workers=self.workers,
                                             generator=torch.Generator())
        prepared = (self._prepared(*item) for item in loader)
        for _, group in itertools.groupby(prepared, key=lambda item: item[1].shape):
            while chunk := list(itertools.islice(group, self.batch_size)):
                numbers, images, samples = zip(*chunk, strict=True)
                yield numbers, torch.stack(images), samples

    def _prepared(self, number, data):
        batch = self.preprocess(pseudo_collate([data]), False)
        return number, batch['inputs'][0], batch['data_samples'][0]


def cache_latents(runner, folder, splits, *, flip=False, std=False, batch_size=32):
    """Writes the latents of a config's images, one folder per split.

    Args:
        runner (Runner): Of the config.
        folder (str | Path): The splits' folders go there.
        splits (Sequence[str]): Some of SPLITS.
        flip (bool): Whether to write those of the flipped images too.
        std (bool): Whether to write the deviation of the VAE's posterior beside its mean.
        batch_size (int): Images per pass of the VAE.

    Raises:
        ValueError: What the model would see without the cache cannot be had from it; the message says why.
        FileExistsError: There is a cache that was made otherwise.
    """
    model = unwrap(runner.model).eval()
    backbone = _backbone(model)
    encoder = backbone.extractor.encoder
    if encoder.vae is None:
        raise ValueError('this DiT works on pixels: there is no VAE to be spared')
    if backbone.latents is not None:
        raise ValueError('this config has cached latents already: give the one that it was made from')
    made = dict(kind='latents', vae=encoder.fingerprint(), vae_dtype=str(encoder.vae.dtype), flip=flip, std=std)
    copies = {'': lambda images: images, **({'flipped ': lambda images: images.flip(-1)} if flip else {})}

    def items(source):
        def give(places):
            for numbers, images, samples in source.batches(places):
                shapes = [_shapes(model, source.split, images.shape[-2:], sample) for sample in samples]
                tensors = {}
                for name, view in copies.items():
                    mean, deviation = encoder.posterior(view(images))  # (B, C, h, w)
                    tensors.update({f'{name}mean': mean.cpu(), **({f'{name}std': deviation.cpu()} if std else {})})
                for place, number in enumerate(numbers):
                    yield dict(about=torch.tensor([number, *shapes[place]]),
                               **{name: values[place] for name, values in tensors.items()})
        return give
    _write(runner, folder, splits, batch_size, made, items, flip)


def _shapes(model, split, size, sample):
    """Height and width of an image as it was, and of the same after the pipeline.

    Raises:
        ValueError: The toolbox would pad images, resize masks or cut windows, which the cached latents cannot follow.
    """
    preprocessor, test_cfg = model.data_preprocessor, getattr(model, 'test_cfg', None) or {}
    original = tuple(sample.get('ori_shape', size))[:2]
    padded, divisor = getattr(preprocessor, 'size', None), getattr(preprocessor, 'size_divisor', None) or 1
    if split == 'train' and (padded and tuple(size) != tuple(padded) or any(side % divisor for side in size)):
        raise ValueError(f'the data_preprocessor pads images of {tuple(size)} pixels for training, which cached latents cannot '
                         'follow: resize them to its size in the pipeline')
    if split != 'train' and (getattr(preprocessor, 'test_cfg', None) or test_cfg.get('mode') == 'slide'):
        raise ValueError(f"{split} pads images or slides a window over them (test_cfg), which cached latents cannot follow: "
                         "set test_cfg=dict(mode='whole'), or cache --split train alone and evaluate without the cache")
    if 'gt_sem_seg' in sample and tuple(sample.gt_sem_seg.shape) != original:
        raise ValueError(f'a mask is {tuple(sample.gt_sem_seg.shape)} after the pipeline and was {original}: masks are not '
                         'cached, so only a pipeline that keeps their size can be')
    return (*original, *tuple(sample.get('img_shape', size))[:2])


def cache_features(runner, folder, splits, *, batch_size=32):
    """Writes mean and deviation of the DiT's maps in each part of the neck's grid, which is what a linear probe needs, one folder
    per split.

    Args:
        runner (Runner): Of the config, with the timestep chosen.
        folder (str | Path): The splits' folders go there.
        splits (Sequence[str]): Some of SPLITS.
        batch_size (int): Images per pass of the DiT.

    Raises:
        ValueError: A head could not be trained from these as through the model; the message says why.
        FileExistsError: There is a cache that was made otherwise.
    """
    model = unwrap(runner.model).eval()
    backbone, neck = _backbone(model), find_module(model, AutoTimestepNeck)
    if not backbone.frozen or backbone.noise == 'random':
        raise ValueError("features are the same in every epoch with frozen=True and noise='seeded' or 'none' alone")
    if neck is None or neck.output != 'vector' or any(isinstance(part, PER_CELL) for part in neck.modules()):
        raise ValueError("a cache holds mean and deviation of each channel, and feeds an AutoTimestepNeck with output='vector', "
                         "pool='mean' or 'grid', norm='channel' or None, and any fusion but 'attention' alone")
    extractor, (rows, columns) = backbone.extractor, neck.grid
    about = dict(weights=weights_hash(extractor), vae=extractor.encoder.fingerprint(), timesteps=list(backbone.timesteps),
                 tap=backbone.tap.tolist(), taps=[list(tap) for tap in extractor.taps], noise=backbone.noise, seed=backbone.seed,
                 noise_draws=backbone.noise_draws, grid=[rows, columns])

    def items(source):
        @torch.no_grad()
        def give(places):
            for numbers, images, _ in source.batches(places):
                maps = torch.cat([own.float() for own in backbone(images)], 1)  # (B, timesteps * taps * D, h, w)
                height, width = maps.shape[2:]
                if height % rows or width % columns:
                    raise ValueError(f'maps of {height}x{width} cells do not part into a grid of {rows}x{columns} alike, so that '
                                     'means and deviations cannot stand for them: choose a grid of the neck that divides them')
                parts = maps.view(*maps.shape[:2], rows, height // rows, columns, width // columns)
                parts = parts.transpose(3, 4).flatten(4).flatten(2, 3)  # (B, timesteps * taps * D, rows * columns, cells)
                moments = torch.cat([parts.mean(3), parts.std(3, correction=0)], 2).cpu()
                for number, values in zip(numbers, moments, strict=True):
                    yield dict(about=torch.tensor([number, parts.shape[3]]), moments=values)
        return give
    _write(runner, folder, splits, batch_size, dict(kind='features', model=about), items, flip=False)


def _backbone(model):
    backbone = find_module(model, DiTBackbone)
    if backbone is None:
        raise ValueError('the config has no DiTBackbone, whose latents or features could be cached')
    return backbone


def _write(runner, folder, splits, batch_size, made, items, flip):
    """One cache per split."""
    for split in splits_of(runner.cfg, splits):
        source = Source(runner.cfg, unwrap(runner.model), split, batch_size)
        if source.flips and not flip:
            runner.logger.warning(f'{split}: RandomFlip is left out of what is cached')
        with tqdm(desc=f'{split} {made["kind"]}', unit=' images', total=len(source)) as bar:
            cache.write(Path(folder) / split, len(source), {**made, **source.about}, items(source), advance=bar.update)


def parser(description, kind):
    """The options that the tools have in common, for a cache of ``kind``."""
    options = launch.parser(description)
    options.add_argument('--out', help=f'folder of the cache (default: work_dirs/{kind}/<config>)')
    options.add_argument('--split', nargs='+', choices=SPLITS, default=SPLITS[:2], help='which datasets (default: train val)')
    options.add_argument('--batch-size', type=int, default=32, help='images per forward pass (default: 32)')
    options.set_defaults(kind=kind)
    return options


def runner_of(args):
    """The runner of a tool's options, with the checkpoint loaded; ``args.out`` is set.

    Raises:
        OSError: A folder cannot be written.
        ValueError: The options or the config are not right.
        CheckpointError: The checkpoint cannot be used.
    """
    if args.launcher != 'none':
        raise ValueError('caches are written by one process: leave --launcher out, and give the splits to several calls')
    cfg = launch.load_config(args)
    if args.checkpoint:
        launch.check_checkpoint(args.checkpoint)
    cfg.load_from, cfg.resume = args.checkpoint, False
    args.out = args.out or f'work_dirs/{args.kind}/{Path(args.config).stem}'
    launch.check_writable(args.out, 'the folder of the cache', '--out')
    launch.prepare(cfg)
    runner = launch.build_runner(cfg)
    runner.load_or_resume()
    return runner
