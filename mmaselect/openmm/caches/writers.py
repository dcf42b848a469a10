"""Writes caches of a config's latents and features, a folder per split."""
from pathlib import Path

import torch
from tqdm import tqdm

from mmaselect.extract import shards
from mmaselect.extract.fingerprint import weights_hash

from ..backbone import DiTBackbone
from ..fusion import Attention
from ..modules import find_module, unwrap
from ..neck import AttentionPool, AutoTimestepNeck
from ..norms import LayerNorm2d
from .source import SplitImages, splits_of

PER_CELL = (LayerNorm2d, Attention, AttentionPool)  # parts of a neck that mix the channels of a cell


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
                for place, (number, file) in enumerate(numbers):
                    yield dict(about=torch.tensor([number, *shapes[place]]), contents=torch.tensor(file),
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


def cache_features(runner, folder, splits, *, batch_size=32, amp=False):
    """Writes mean and deviation of the DiT's maps in each part of the neck's grid, which is what a linear probe needs, one folder
    per split.

    Args:
        runner (Runner): Of the config, with the timestep chosen.
        folder (str | Path): The splits' folders go there.
        splits (Sequence[str]): Some of SPLITS.
        batch_size (int): Images per pass of the DiT.
        amp (bool): Whether the caller autocasts, which is noted.

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
                 noise_draws=backbone.noise_draws, grid=[rows, columns], pos_scale=extractor.family.pos_scale, amp=amp)

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
                for (number, file), values in zip(numbers, moments, strict=True):
                    yield dict(about=torch.tensor([number, parts.shape[3]]), contents=torch.tensor(file), moments=values)
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
        source = SplitImages(runner.cfg, unwrap(runner.model), split, batch_size)
        if source.flips and not flip:
            runner.logger.warning(f'{split}: RandomFlip is left out of what is cached')
        with tqdm(desc=f'{split} {made["kind"]}', unit=' images', total=len(source)) as bar:
            shards.write(Path(folder) / split, len(source), {**made, **source.about}, items(source), advance=bar.update)
