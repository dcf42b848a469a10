"""The images of tools/pretrain_dit.py: read, shuffled, cut and mirrored by seeds."""
import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pretrain_loop import say
from torchvision.datasets.mnist import read_image_file

from mmaselect.extract.inputs import pixels


def eight_bits(picture):
    """A PIL image as uint8 (H, W, 3); of 16 bits by its whole range."""
    array = pixels(picture)  # (H, W, 3)
    return (array // 257).astype(np.uint8) if array.dtype == np.uint16 else array


def resized(picture, size):
    """Likewise, of size x size pixels."""
    return np.asarray(Image.fromarray(eight_bits(picture)).resize((size, size), Image.BILINEAR))


def read_images(sources, size, crop=False):
    """All images of the folders and idx files, as uint8 (H, W, 3): resized to size x size, or as they are where crops are cut.

    Raises:
        SystemExit: A source is no images or has none; an image is smaller than a crop, or none is larger.
    """
    images = []
    for source in map(Path, sources):
        if source.is_dir():
            files = sorted(p for p in source.rglob('*') if p.suffix.lower() in ('.png', '.jpg', '.jpeg'))
            pictures = map(Image.open, files)
        else:
            try:
                pictures = map(Image.fromarray, read_image_file(source).numpy())
            except Exception as error:  # torchvision asserts, and raises what a wrong length raises
                raise SystemExit(f'{source} is neither a folder nor an idx file of images: {error!r}') from error
        before = len(images)
        for picture in pictures:
            with picture:
                images.append(eight_bits(picture) if crop else resized(picture, size))
        if len(images) == before:
            raise SystemExit(f'{source} has no PNG or JPEG files')
        say(f'{len(images) - before} images from {source}')
    if crop:
        sides = [min(image.shape[:2]) for image in images]
        if min(sides) < size:
            raise SystemExit(f'--crop cuts {size} x {size} pixels, and the smallest image has a side of {min(sides)}: choose a '
                             'smaller --size, or leave --crop out and images are resized')
        if max(max(image.shape[:2]) for image in images) == size:
            raise SystemExit(f'--crop has nothing to cut: every image has {size} x {size} pixels. Leave it out')
    return images


@functools.lru_cache(maxsize=2)
def shuffled(seed, epoch, count):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 10_000_019 + epoch))


def batch_indices(seed, step, size, count):
    """Which images a step sees, (size,): each once an epoch, in an order that (seed, epoch) gives."""
    found, position, end = [], step * size, (step + 1) * size
    while position < end:
        epoch, first = divmod(position, count)
        found.append(shuffled(seed, epoch, count)[first:first + end - position])
        position += len(found[-1])
    return torch.cat(found)


def scaled(images):
    """(B, 3, H, W) in [-1, 1] of uint8 (B, H, W, 3)."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_tensor(images):
    return scaled(torch.from_numpy(np.stack(images)))


def pixel_reader(images, args):
    """A function of (indices, flip, generator) to (B, 3, size, size) in [-1, 1], cut at random with ``--crop``.

    A batch goes to the device in 8 bits, and is scaled there.
    """
    if args.crop:
        def read(indices, flip, generator):
            return scaled(torch.from_numpy(crops([images[i] for i in indices.tolist()], args.size, flip, generator)))
        return read
    whole = torch.from_numpy(np.stack(images))  # (N, size, size, 3)

    def read(indices, flip, generator):
        batch = whole.index_select(0, indices).to(args.device)  # with ``[indices]`` twice the time
        return scaled(torch.where(flip.to(args.device)[:, None, None, None], batch.flip(2), batch))
    return read


def crops(images, size, flip, generator):
    """Squares (B, size, size, 3) of uint8 images, cut at random where they are larger and flipped where ``flip`` says so."""
    cut = []
    for image, mirrored in zip(images, flip.tolist(), strict=True):
        if image.shape[:2] != (size, size):
            y, x = (int(torch.randint(side - size + 1, (), generator=generator)) for side in image.shape[:2])
            image = image[y:y + size, x:x + size]
        cut.append(image[:, ::-1] if mirrored else image)
    return np.stack(cut)


def view(images, generator):
    """Random crops (B, 3, H, W) of images (B, 3, H, W) in [-1, 1]: resized, mirrored and recoloured, each by its own draws.

    After SimCLR's (arXiv:2002.05709, appendix A): 20 to 100 % of the area; jitter of brightness, contrast, saturation and tint;
    grey. ``generator`` is on the images' device.
    """
    count, device = len(images), images.device

    def uniform(low, high, *shape):
        return torch.rand(count, *shape, generator=generator, device=device) * (high - low) + low

    area, ratio = uniform(0.2, 1), uniform(-0.28, 0.28).exp()  # sides between 3:4 and 4:3
    sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).clamp(max=1)  # (B, 2), x and y, of the whole
    centre = uniform(-1, 1, 2) * (1 - sides)
    sides[:, 0] *= 1 - 2 * (uniform(0, 1) < 0.5).float()
    grid = F.affine_grid(torch.cat([torch.diag_embed(sides), centre[..., None]], 2), images.shape, align_corners=False)
    x = F.grid_sample(images, grid, padding_mode='reflection', align_corners=False) / 2 + 0.5

    coloured = x * uniform(0.6, 1.4, 1, 1, 1)
    mean = coloured.mean((1, 2, 3), keepdim=True)
    coloured = (coloured - mean) * uniform(0.6, 1.4, 1, 1, 1) + mean
    grey = coloured.mean(1, keepdim=True)
    coloured = (grey + (coloured - grey) * uniform(0.4, 1.6, 1, 1, 1)) * uniform(0.9, 1.1, 3, 1, 1)
    coloured = torch.where(uniform(0, 1, 1, 1, 1) < 0.2, grey, coloured)
    return torch.where(uniform(0, 1, 1, 1, 1) < 0.8, coloured, x).clamp(0, 1) * 2 - 1
