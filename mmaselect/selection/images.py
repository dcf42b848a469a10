"""The images of a sweep, and how ranks share them. What the sweep needs of images is two attributes and two methods; see
``TensorImages``."""
import torch.distributed as dist


def rank_and_size():
    """This process's rank and how many there are, (0, 1) where torch.distributed does not run."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(value):
    """Every rank's value, in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


class TensorImages:
    """Images in memory, as ``sweep`` takes them.

    Args:
        images (Tensor): (N, 3, H, W) in [-1, 1].
        labels (Tensor | None): (N,) classes, or (N, H, W) classes per pixel, where 255 is no class; nor is -1.
        batch_size (int): Images at a time.
    """

    def __init__(self, images, labels=None, batch_size=16):
        self.images, self.labels, self.batch_size = images, labels, batch_size

    @property
    def label_kind(self):
        """What has a label of its own in what ``batches`` gives: 'image' or 'pixel', or None where nothing has."""
        return None if self.labels is None else 'image' if self.labels.ndim == 1 else 'pixel'

    @property
    def num_classes(self):
        """How many classes the images are of where each has one label, None elsewhere."""
        return len(self.labels.unique()) if self.label_kind == 'image' else None

    def __len__(self):
        """Images over all ranks."""
        return len(self.images)

    def batches(self, start, stop):
        """This rank's share of the images from ``start`` to ``stop``: batches of (indices, images, labels or None).

        Indices are unique over all ranks: augmentation, and noise of each image's own, depend on them and the seed alone.
        """
        rank, ranks = rank_and_size()
        share = [index for index in range(start, min(stop, len(self))) if index % ranks == rank]
        for first in range(0, len(share), self.batch_size):
            chunk = share[first:first + self.batch_size]
            yield chunk, self.images[chunk], None if self.labels is None else self.labels[chunk]
