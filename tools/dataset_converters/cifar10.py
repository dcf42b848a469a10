"""Puts CIFAR-10 into folders of images with a list per part, in the layout of mmpretrain's CustomDataset.

    python tools/dataset_converters/cifar10.py data/cifar10 --download      # torchvision downloads the original
    python tools/dataset_converters/cifar10.py data/cifar10 --source FOLDER

FOLDER is torchvision's (it has cifar-10-batches-py) or has images as {train,test}/CLASS/NAME.png or .jpg; these are copied as
they are, and none where it is the folder to write. CIFAR-10 (Krizhevsky 2009) has 50,000 + 10,000 photographs of 32x32 pixels.

Written are {train,test}/CLASS/NAME and meta/{train,test}.txt with a line 'CLASS/NAME label' per image. The lists take one image
of each class in turn, in an order that a seed gives, so that their first 10 n lines are n images of each class: the configs with
few labels are ``indices=10 * n``.
"""
import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmaselect.files import atomic

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
SPLITS = ('train', 'test')
SUFFIXES = ('.png', '.jpg', '.jpeg')
SIDE = 32


def images_of(folder):
    """The files of each class of each split below ``folder``: {split: {class: [Path]}}.

    Raises:
        ValueError: A split or class is missing or empty, there is a class that CIFAR-10 lacks, or an image is not of 32x32
            pixels.
    """
    found = {}
    for split in SPLITS:
        if not (folder / split).is_dir():
            raise ValueError(f'{folder} has no folder {split}: it needs {{train,test}}/CLASS/NAME.png or .jpg, or torchvision\'s '
                             'cifar-10-batches-py')
        others = sorted(path.name for path in (folder / split).iterdir() if path.is_dir() and path.name not in CLASSES)
        if others:
            raise ValueError(f'{folder / split} has folders that are no class of CIFAR-10: {", ".join(others)}; its classes are '
                             f'{", ".join(CLASSES)}')
        found[split] = {}
        for name in CLASSES:
            files = sorted(path for path in (folder / split / name).glob('*') if path.suffix.lower() in SUFFIXES)
            if not files:
                raise ValueError(f'{folder / split / name} has no .png or .jpg')
            found[split][name] = files
    for path in tqdm([path for split in found.values() for files in split.values() for path in files], desc='checking'):
        try:
            with Image.open(path) as image:
                size = image.size
        except OSError as error:
            raise ValueError(f'{path} is no image that can be read ({error})') from error
        if size != (SIDE, SIDE):
            raise ValueError(f'{path} has {size[0]}x{size[1]} pixels, and images of CIFAR-10 have {SIDE}x{SIDE}')
    return found


def unpack(root, out, download):
    """Writes the images of torchvision's download as PNG. torchvision checks its files against their MD5 before it reads them.

    Raises:
        ValueError: They are not there or damaged.
    """
    from torchvision.datasets import CIFAR10
    for split in SPLITS:
        try:
            dataset = CIFAR10(str(root), train=split == 'train', download=download)
        except (RuntimeError, OSError) as error:
            raise ValueError(f'torchvision has no whole CIFAR-10 in {root}: {error}') from error
        for name in CLASSES:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for index, (image, label) in enumerate(tqdm(dataset, desc=split)):
            path = out / split / CLASSES[label] / f'{index:05d}.png'
            if not path.exists():
                with atomic(path) as part:
                    image.save(part, format='png')


def copy(found, out):
    """Copies the images below ``out``; each appears only when it is whole."""
    for split, classes in found.items():
        for name, files in classes.items():
            (out / split / name).mkdir(parents=True, exist_ok=True)
            for source in tqdm(files, desc=f'{split}/{name}'):
                target = out / split / name / source.name
                if not target.exists():
                    with atomic(target) as part:
                        shutil.copyfile(source, part)


def balanced(classes, rng):
    """Lines 'CLASS/NAME label', one image of each class in turn, each class in a random order."""
    orders = [[f'{name}/{path.name} {label}' for path in (files[k] for k in rng.permutation(len(files)))]
              for label, (name, files) in enumerate(classes.items())]
    longest = max(map(len, orders))
    return [order[k] for k in range(longest) for order in orders if k < len(order)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('out', type=Path, help='folder to write')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--source', type=Path, help="torchvision's folder, or one of images, which may be the one to write")
    source.add_argument('--download', action='store_true', help='let torchvision download CIFAR-10')
    parser.add_argument('--seed', type=int, default=0, help='of the order in the lists (default: 0)')
    args = parser.parse_args()
    try:
        if args.download:
            with tempfile.TemporaryDirectory() as scratch:
                unpack(scratch, args.out, download=True)
        elif (args.source / 'cifar-10-batches-py').is_dir():
            unpack(args.source, args.out, download=False)
        elif args.source.resolve() != args.out.resolve():
            copy(images_of(args.source), args.out)
        found = images_of(args.out)
        (args.out / 'meta').mkdir(exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for number, split in enumerate(SPLITS):
        lines = balanced(found[split], np.random.default_rng([args.seed, number]))
        with atomic(args.out / 'meta' / f'{split}.txt') as part:
            part.write_text('\n'.join(lines) + '\n')
        print(f'{len(lines)} {split} images in {args.out}')


if __name__ == '__main__':
    main()
