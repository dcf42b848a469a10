"""Renders `fashion scenes`: a small real-image segmentation set made of Fashion-MNIST garments.

Each scene is a 64x64 RGB image of one to four garments, scaled, mirrored, tinted and overlapping, on a textured
background, with a mask per pixel: 0 is the background, 1 to 10 are Fashion-MNIST's classes in their order. The train
and pretrain splits draw from Fashion-MNIST's 60,000 training garments, val from its 10,000 test garments, so no garment is
seen in both. A scene depends on (seed, split, index) alone.

    python tools/dataset_converters/fashion_scenes.py data/fashion_mnist data/fashion_scenes

writes mmseg's layout, img_dir/{train,val}/*.png and ann_dir/{train,val}/*.png.
"""
import argparse
import colorsys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torchvision.datasets.mnist import read_image_file, read_label_file

from mmaselect.files import atomic

SIZE = 64
SPLITS = {'train': 'train', 'val': 't10k', 'pretrain': 'train'}  # split -> the part of Fashion-MNIST it draws from


def silhouette(garment):
    """The garment's pixels, its enclosed dark ones included, as a boolean (H, W)."""
    canvas = Image.fromarray(np.pad((garment > 12).astype(np.uint8) * 255, 1)).copy()  # fromarray's is read-only
    ImageDraw.floodfill(canvas, (0, 0), 128)
    return np.asarray(canvas)[1:-1, 1:-1] != 128


def background(rng):
    """A textured RGB background in [0, 1], (SIZE, SIZE, 3)."""
    cells = int(rng.integers(2, 9))
    tone = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.15, 0.9))
    colours = (np.array(tone) + 0.07 * rng.standard_normal((cells, cells, 3))).clip(0, 1)
    blobs = Image.fromarray((colours * 255).astype(np.uint8)).resize((SIZE, SIZE), Image.BICUBIC)
    texture = np.asarray(blobs, np.float64) / 255
    y, x = np.mgrid[:SIZE, :SIZE]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 20)
    stripes = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    texture = texture + rng.uniform(0, 0.07) * stripes[..., None]
    return (texture + 0.02 * rng.standard_normal(texture.shape)).clip(0, 1)


def render(rng, garments, labels):
    """One scene: image (SIZE, SIZE, 3) uint8 and mask (SIZE, SIZE) uint8."""
    image, mask = background(rng), np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(int(rng.integers(1, 5))):
        index = int(rng.integers(len(garments)))
        side = int(rng.integers(26, 57))
        left, top = (int(v) for v in rng.integers(-side // 4, SIZE - 3 * side // 4, 2))
        colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.6, 1)))
        garment = garments[index][:, ::-1] if rng.random() < 0.5 else garments[index]

        def place(array, side=side, left=left, top=top):
            layer = Image.new('L', (SIZE, SIZE))
            layer.paste(Image.fromarray(array).resize((side, side), Image.BILINEAR), (left, top))
            return np.asarray(layer, np.float64)[..., None] / 255

        alpha = place(silhouette(garment).astype(np.uint8) * 255)
        shade = 0.25 + 0.75 * place(np.ascontiguousarray(garment))
        image = image * (1 - alpha) + colour * shade * alpha
        mask[alpha[..., 0] > 0.5] = labels[index] + 1
    return (image * 255).round().astype(np.uint8), mask


def write(indices, source, out, split, seed):
    """Writes the scenes of these indices that are not there; each file appears only when it is whole.

    Raises:
        ValueError: A scene that is there in part, or the first one, is another.
    """
    part = SPLITS[split]
    garments = read_image_file(source / f'{part}-images-idx3-ubyte').numpy()  # (N, 28, 28)
    labels = read_label_file(source / f'{part}-labels-idx1-ubyte').numpy()  # (N,)
    for index in indices:
        paths = [out / kind / split / f'{index:06d}.png' for kind in ('img_dir', 'ann_dir')]
        if index and all(path.exists() for path in paths):
            continue
        rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
        for path, array in zip(paths, render(rng, garments, labels), strict=True):
            if not path.exists():
                with atomic(path) as part:
                    Image.fromarray(array).save(part, format='png')
            elif not np.array_equal(np.asarray(Image.open(path)), array):
                raise ValueError(f'{path} is of another --seed than {seed}, or of other garments: give another folder')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('source', type=Path, help="folder with Fashion-MNIST's four idx files (see fashion_mnist.py)")
    parser.add_argument('out', type=Path, help='folder to write')
    parser.add_argument('--train', type=int, default=2000, help='training scenes')
    parser.add_argument('--val', type=int, default=500, help='validation scenes')
    parser.add_argument('--pretrain', type=int, default=0, help='scenes for pretraining without labels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    for split in SPLITS:
        count = getattr(args, split)
        if not count:  # nor are its garments needed
            continue
        found = len(list((args.out / 'img_dir' / split).glob('*.png')))
        if found > count:
            parser.error(f'{args.out} has {found} {split} scenes, and --{split} {count} asks for fewer: give another folder')
        for kind in ('img_dir', 'ann_dir'):
            (args.out / kind / split).mkdir(parents=True, exist_ok=True)
        job = partial(write, source=args.source, out=args.out, split=split, seed=args.seed)
        with ProcessPoolExecutor(args.workers) as pool:
            try:
                list(pool.map(job, [range(k, count, args.workers) for k in range(args.workers)]))
            except ValueError as error:
                parser.error(str(error))
        print(f'{count} {split} scenes in {args.out}')


if __name__ == '__main__':
    main()
