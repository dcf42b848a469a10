"""What can be said against images and labels before the transformer has run."""
from collections import Counter

import torch

from .distributed import gather
from .images import TensorImages
from .measure import Measurement
from .scores import Score


class FewLabelsError(ValueError):
    """Which more images may mend."""


def check_images(measurement: Measurement, images: TensorImages, score: Score) -> None:
    """Refuses what a score can learn nothing from, of all ranks' images that are encoded.

    Raises:
        ValueError: The images are all alike, labels lie outside the classes, or classes are too few or have too few images.
    """
    count = sum(gather(sum(len(batch.indices) for batch in measurement.batches)))
    first = measurement.first_image
    firsts = [own for own in gather(None if first is None else first.cpu()) if own is not None]
    alike = all(gather(measurement.alike)) and all(torch.equal(own, firsts[0]) for own in firsts)
    if count > 1 and alike:
        raise ValueError(f'all {count} images of the sweep are alike, so that no timestep can be better than another: check the '
                         'paths, the pipeline and the normalisation of the dataset')
    if score.labelled:
        _check_labels(measurement, images, score, count)


def _check_labels(measurement, images, score, count):
    """By how many images have each label."""
    holders: Counter = Counter()
    for batch in measurement.batches:
        for own in batch.labels:
            holders.update(own.unique().tolist())
    holders = sum(gather(holders), Counter())
    pixel = images.label_kind == 'pixel'
    ignored = (-1, 255) if pixel else (-1,)
    classes = {label: number for label, number in holders.items() if label not in ignored}
    known = getattr(images, 'classes', None)
    outside = sorted(label for label in classes if label < 0 or known and label >= known)
    if outside:
        raise ValueError(f'labels {outside} lie outside the {known or len(classes)} classes of the dataset: '
                         + ('check the masks, reduce_zero_label and metainfo.classes; 255 is no class' if pixel else
                            'check the annotations and metainfo.classes'))
    if len(classes) < 2:
        hint = ('255 means that a pixel has no class: where it stands for the second class, write 1 into the masks'
                if 255 in holders and pixel and classes else
                'raise num_images, check the labels, or choose a score without labels, such as half_consistency')
        raise FewLabelsError(f'the score {score.name} needs images of at least two classes, and the labels of these {count} are '
                             f'{sorted(holders)}: {hint}')
    if not pixel and count < 2 * len(classes):
        raise FewLabelsError(f'{count} images of {len(classes)} classes are too few for the score {score.name}, which predicts '
                             'each image from others of its class: raise num_images, or take a score without labels')
