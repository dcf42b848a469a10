"""Features of images that a frozen backbone was trained on before, so that those of each image are computed once."""
import torch
from mmengine.logging import print_log

from mmaselect.extract.fingerprint import hash_of

USELESS = 10  # times as many images as there is room for: if none of them came twice, none will


class Recall:
    """Features by the content of their images, in main memory; each process of a distributed training has its own.

    RandomFlip makes two images of one, and random crops so many that nothing is gained. Nothing is dropped to make room: of a set
    that is larger than the memory the same part is found in every epoch, where the least recently used would be dropped right
    before it comes again.

    Args:
        gib (float): At most so many GiB of features.

    Raises:
        ValueError: Below 0.
    """

    def __init__(self, gib):
        if gib < 0:
            raise ValueError(f'recall={gib!r}: give the GiB of main memory that features may take, or leave it out')
        self.gib = gib
        self.clear()

    def __deepcopy__(self, memo):  # an averaged model has weights of its own
        return Recall(self.gib)

    def clear(self):
        """Forgets all, as other weights ask for."""
        self.kept, self.taken, self.computed, self.hits, self.useless = {}, 0, 0, 0, False

    def __call__(self, run, images, settings):
        """What ``run`` makes of images, computed for those that are new.

        Args:
            run (Callable[[Tensor], Sequence[Tensor]]): Images (B, C, H, W) to maps (B, D, h, w), of each image by itself.
            images (Tensor): (B, C, H, W).
            settings: All else that the maps depend on; compared by its repr.
        """
        if self.useless:
            return run(images)
        about = repr((settings, images.shape[1:], images.dtype))
        keys = [hash_of({'image': image}, about) for image in images.cpu()]
        found = [self.kept.get(key) for key in keys]  # per image its maps (D, h, w)
        new = [place for place, own in enumerate(found) if own is None]
        if new:
            made = run(images if len(new) == len(keys) else images[new])
            for place, *own in zip(new, *made, strict=True):
                found[place] = own
                self._keep(keys[place], own)
        self._judge(hits=len(keys) - len(new))
        if len(new) == len(keys):
            return tuple(made)
        return tuple(torch.stack([m.to(images.device, non_blocking=True) for m in tap]) for tap in zip(*found, strict=True))

    def _keep(self, key, maps):
        size = sum(m.numel() * m.element_size() for m in maps)
        self.computed += 1
        if self.taken + size <= self.gib * 2**30:
            self.kept[key] = [m.detach().to('cpu', copy=True) for m in maps]
            self.taken += size

    def _judge(self, hits):
        self.hits += hits
        if not self.hits and self.computed > USELESS * len(self.kept):
            print_log(f'recall: none of {self.computed} images came twice, and {len(self.kept)} fit into {self.gib} GiB. From '
                      'here on features are computed each time. Random crops and colours make every image a new one; of a '
                      'large training set more fits with a larger recall', 'current', 30)
            self.clear()
            self.useless = True
