"""What stands for the VAE, or for the whole frozen DiT, in a config whose latents or features were cached."""
import functools
import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform, RandomFlip
from mmengine.model import BaseModule

from mmaselect.extract.cache import Cache, find
from mmaselect.registry import MODELS, TRANSFORMS


def identity(info):
    """A number of 63 bits by which an item's image is known again: from the names of its file and folder, or from its pixels
    where the dataset holds them.

    Raises:
        ValueError: The item has neither.
    """
    if isinstance(info.get('img'), np.ndarray):
        about = repr(info['img'].shape).encode() + info['img'].tobytes()
    elif info.get('img_path'):
        about = '/'.join(Path(info['img_path']).parts[-2:]).encode()
    else:
        raise ValueError(f'an item of the dataset has neither img_path nor img, but {sorted(info)}: it cannot be cached')
    return int.from_bytes(hashlib.blake2b(about, digest_size=8).digest(), 'big') >> 1


class _Load(BaseTransform):
    """Finds an item in a cache, and refuses a cache that was made from other images."""

    def __init__(self, cache):
        self.cache = Cache(cache, self.kind)

    def about(self, results):
        """What was noted beside the item."""
        place = results['sample_idx']
        number, *about = self.cache.read(place, 'about').tolist()
        if number != identity(results):
            raise ValueError(f'item {place} of {self.cache.folder} was made from another image than '
                             f'{results.get("img_path", "the dataset has there")}: the dataset has changed, or is another split. '
                             'Write the cache again')
        return about

    def __repr__(self):
        return f'{type(self).__name__}(cache={str(self.cache.folder)!r})'


@TRANSFORMS.register_module()
class LoadLatents(_Load):
    """Loads the cached latents of an image in its place. Stands where LoadImageFromFile stood, and for all that followed it but
    LoadAnnotations, the flip and the packing.

    Adds ``img`` (h, w, C) float32, ``img_shape`` and ``ori_shape``, those of the image.

    Args:
        cache (str): Folder that tools/cache_latents.py wrote for this split.
        draw (str): 'mean', or 'sample' for a fresh draw from the VAE's posterior, which needs --std.

    Raises:
        FileNotFoundError: There is no cache.
        ValueError: Unknown draw, or the dataset has other images than were cached.
    """
    kind = 'latents'

    def __init__(self, cache, draw='mean'):
        super().__init__(cache)
        if draw not in ('mean', 'sample'):
            raise ValueError(f"draw is 'mean' or 'sample', not {draw!r}")
        self.draw = draw

    def transform(self, results):
        height, width, img_height, img_width = self.about(results)
        results['img'] = self._latent(results['sample_idx'], '')
        results['flipped'] = functools.partial(self._latent, results['sample_idx'], 'flipped ')  # read where it is asked for
        results['ori_shape'], results['img_shape'] = (height, width), (img_height, img_width)
        return results

    def _latent(self, place, which):
        latent = self.cache.read(place, f'{which}mean')  # (C, h, w)
        if self.draw == 'sample':
            latent = latent + self.cache.read(place, f'{which}std') * torch.randn(latent.shape)
        return latent.permute(1, 2, 0).contiguous().numpy()  # (h, w, C), as images are before they are packed


@TRANSFORMS.register_module()
class FlipLatents(RandomFlip):
    """RandomFlip for what LoadLatents loaded: takes the latents of the flipped image, which the VAE does not make by flipping
    latents, and flips masks as ever. Draws the same random numbers.

    Args:
        prob (float | None): As in RandomFlip.
        **kwargs: ``swap_seg_labels``.

    Raises:
        ValueError: A direction other than 'horizontal', or latents that were cached without --flip.
    """

    def __init__(self, prob=None, **kwargs):
        super().__init__(prob, **kwargs)
        if self.direction != 'horizontal':
            raise ValueError(f'there are latents of horizontally flipped images alone, not of direction={self.direction!r}')

    def _flip(self, results):
        super()._flip(results)
        results['img'] = results['flipped']()


@TRANSFORMS.register_module()
class LoadFeatures(_Load):
    """Loads the cached features of an image, for ``CachedFeatures``: ``img`` (2, parts, maps * D) float32, mean and standard
    deviation over the cells of each part of the neck's grid, of the map of each timestep and tap. A mean over all is one part.

    Args:
        cache (str): Folder that tools/cache_features.py wrote for this split.

    Raises:
        FileNotFoundError: There is no cache.
        ValueError: The dataset has other images than were cached, or they are not of one size.
    """
    kind = 'features'

    def __init__(self, cache):
        super().__init__(cache)
        self.cells = int(self.cache.read(0, 'about')[1])  # of a part

    def transform(self, results):
        cells, = self.about(results)
        if cells != self.cells:
            raise ValueError(f'{self.cache.folder} has features of {self.cells} and of {cells} cells: resize the images to one '
                             'size')
        moments = self.cache.read(results['sample_idx'], 'moments')  # (maps * D, 2 parts)
        results['img'] = moments.T.unflatten(0, (2, -1)).contiguous().numpy()  # (2, parts, maps * D)
        return results


@MODELS.register_module()
class CachedFeatures(BaseModule):
    """Stands for a frozen DiTBackbone whose features tools/cache_features.py wrote.

    What a BatchNorm and the means over the parts of a grid make of a map depends on each channel's mean and standard deviation in
    each part alone. So maps of as many cells as the DiT's that share both give an AutoTimestepNeck with norm='channel' or None
    and pool='mean' or 'grid', of the grid that was cached, what it would have got, and a head is trained as through the DiT.
    The checkpoint fits the config with the DiT.

    Args:
        cache (str): Folder of the caches of all splits.
        init_cfg (dict | None): MMEngine's.

    Raises:
        FileNotFoundError: There is no cache.
        ValueError: The splits were cached with different models, timesteps or taps.
    """

    def __init__(self, cache, init_cfg=None):
        super().__init__(init_cfg)
        caches = find(cache, 'features')
        models = {name: own.settings['model'] for name, own in caches.items()}
        first = next(iter(models.values()))
        if any(own != first for own in models.values()):
            raise ValueError(f'the splits {", ".join(models)} in {cache} were made with different models, timesteps or taps: '
                             'remove them and write them together')
        timesteps = first['timesteps']
        self.num_maps = len(timesteps) * len(first['taps'])
        # A checkpoint tells the choice to the DiTBackbone that it is loaded into later.
        self.register_buffer('timestep', torch.tensor(timesteps if len(timesteps) > 1 else timesteps[0]))
        self.register_buffer('tap', torch.tensor(first['tap']))
        self.grid = tuple(first.get('grid', (1, 1)))
        cells = int(next(iter(caches.values())).read(0, 'about')[1])
        self.register_buffer('pattern', spread(cells), persistent=False)

    def forward(self, moments):
        """Maps, one per timestep and tap, each (B, D, rows, columns * cells), of means and deviations (B, maps * D, 2, parts)."""
        mean, deviation = moments[..., None].unbind(2)  # (B, maps * D, parts, 1) each
        cells = mean + deviation * self.pattern  # (B, maps * D, parts, cells)
        return cells.unflatten(2, self.grid).flatten(3).chunk(self.num_maps, 1)


def spread(cells):
    """Numbers (cells,) of mean 0 and variance 1; of one cell, which has no variance, 0."""
    pattern = torch.ones(cells)
    pattern[1::2] = -1
    if cells % 2:
        pattern[-1] = 0
        pattern *= math.sqrt(cells / max(1, cells - 1))
    return pattern
