"""The images of a sweep in memory. What a sweep needs of images is the attributes and methods of ``TensorImages``."""
from collections.abc import Iterator

from torch import Tensor

from mmaselect.extract.numbers import check_batch_size

from .distributed import rank_and_size


class TensorImages:
    """Images in memory, as ``sweep`` takes them.

    Args:
        images (Tensor): (N, 3, H, W) in [-1, 1].
        labels (Tensor | None): (N,) classes, or (N, H, W) classes per pixel, where 255 is no class; nor is -1.
        batch_size (int): Images at a time.

    Raises:
        ValueError: batch_size is no integer from 1 on.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, batch_size: int = 16):
        check_batch_size(batch_size)
        self.images, self.labels, self.batch_size = images, labels, batch_size

    @property
    def label_kind(self) -> str | None:
        """What has a label of its own in what ``batches`` gives: 'image' or 'pixel', or None where nothing has."""
        return None if self.labels is None else 'image' if self.labels.ndim == 1 else 'pixel'

    @property
    def num_classes(self) -> int | None:
        """How many classes the images are of where each has one label, None elsewhere."""
        return len(self.labels.unique()) if self.labels is not None and self.labels.ndim == 1 else None

    def __len__(self) -> int:
        """Images over all ranks."""
        return len(self.images)

    def batches(self, start: int, stop: int) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
        """This rank's share of the images from ``start`` to ``stop``: batches of (indices, images, labels or None).

        Indices are unique over all ranks: augmentation, and noise of each image's own, depend on them and the seed alone.
        """
        rank, ranks = rank_and_size()
        share = [index for index in range(start, min(stop, len(self))) if index % ranks == rank]
        for first in range(0, len(share), self.batch_size):
            chunk = share[first:first + self.batch_size]
            yield chunk, self.images[chunk], None if self.labels is None else self.labels[chunk]
