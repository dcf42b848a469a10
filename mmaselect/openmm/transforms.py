"""Transforms that load cached latents or features in the place of an image."""
import functools
import hashlib
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform, RandomFlip

from mmaselect.extract.shards import Cache
from mmaselect.registry import TRANSFORMS


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
    return _number(about)


def contents(info: dict) -> list[int]:
    """Of an item's image file: a hash of its bytes (63 bits), its size, and when it was last written (ns).

    All are 0 where there is no file on this machine's disk, since the dataset holds the pixels or reads them elsewhere.
    """
    path = Path(info.get('img_path') or '')
    if isinstance(info.get('img'), np.ndarray) or not path.is_file():
        return [0, 0, 0]
    stat = path.stat()
    return [_number(path.read_bytes()), stat.st_size, stat.st_mtime_ns]


def _number(data):
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big') >> 1


class _Load(BaseTransform):
    """Finds an item in a cache, and refuses a cache that was made from other images.

    A file is read to be compared only where it was written since, as by copying; else its size and time say that it is the same.
    """

    def __init__(self, cache):
        self.cache = Cache(cache, self.kind)
        self._same = set()  # places of files that were written since and hold the same

    def about(self, results):
        """What was noted beside the item."""
        place = results['sample_idx']
        number, *about = self.cache.read(place, 'about').tolist()
        if number != identity(results):
            raise ValueError(f'item {place} of {self.cache.folder} was made from another image than '
                             f'{results.get("img_path", "the dataset has there")}: the dataset has changed, or is another split. '
                             'Write the cache again')
        if self.cache.settings.get('contents') and place not in self._same:
            self._check_contents(place, results)
        return about

    def _check_contents(self, place, results):
        content, *written = self.cache.read(place, 'contents').tolist()
        path = Path(results.get('img_path') or '')
        if not content or not path.is_file() or written == [path.stat().st_size, path.stat().st_mtime_ns]:
            return
        if contents(results)[0] != content:
            raise ValueError(f'item {place} of {self.cache.folder} was made from {path} as it was before: another image was '
                             'written there since. Write the cache again')
        self._same.add(place)

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
