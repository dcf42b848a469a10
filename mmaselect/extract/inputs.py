"""Images as people hold them, PIL, arrays or tensors, made into the batch that an ``Extractor`` takes."""
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .numbers import is_count


def to_batch(images, size=None):
    """One batch of images.

    Args:
        images (PIL.Image | ndarray | Tensor | Sequence): One image, or a list of images, each of which is

            - a PIL image, which is converted to RGB: of 16 bits by its whole range, and what is transparent is laid over white;
            - uint8 (H, W, 3), from 0 to 255, as numpy and PIL have it, or uint16, from 0 to 65535;
            - floating point (3, H, W), from 0 to 1, as torchvision's ``to_tensor`` has it.

            Arrays and tensors may have a first axis of several images. The channels are red, green and blue.
        size (int | tuple[int, int] | None): Height and width in pixels that each image is scaled to (bilinear, antialiased).
            None leaves them as they are; they must then agree.

    Returns:
        Tensor: (B, 3, H, W) float32 in [-1, 1].

    Raises:
        ValueError: No image, something else than images, values out of range, sizes that differ, or a wrong ``size``.

    Examples:
        >>> to_batch(np.full((4, 6, 3), 255, np.uint8)).shape
        torch.Size([1, 3, 4, 6])
    """
    parts = [_batch(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
    if size is not None:
        size = (size, size) if isinstance(size, int) else size
        if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(map(is_count, size)):
            raise ValueError(f'size={size!r}: the height and width in pixels that images are scaled to, or one number for both')
        parts = [F.interpolate(part, tuple(size), mode='bilinear', antialias=True) for part in parts]  # (B, 3, *size)
    if not sum(len(part) for part in parts):
        raise ValueError('no images were given')
    sizes = sorted({tuple(part.shape[-2:]) for part in parts})
    if len(sizes) > 1:
        raise ValueError(f'the images differ in size, {sizes[0]} and {sizes[-1]} (height, width): set size=, to which they are '
                         'scaled, or give those of one size at a time')
    return torch.cat(parts)


def _batch(image):
    """One image, or several on a first axis, as (B, 3, H, W) float32 in [-1, 1]."""
    if isinstance(image, Image.Image):
        image = pixels(image)  # (H, W, 3)
    if isinstance(image, np.ndarray):
        image = np.ascontiguousarray(image)  # a mirrored array, such as image[..., ::-1], has negative strides
        if image.dtype == np.uint16:  # which torch knows since 2.3
            if image.shape[-1:] != (3,):
                raise ValueError('a uint16 image is (H, W, 3), red, green and blue from 0 to 65535, and this one is '
                                 f'{image.shape}')
            image = np.moveaxis(image, -1, -3).astype(np.float32) / 65535  # (3, H, W)
        image = torch.from_numpy(image)
    if not isinstance(image, torch.Tensor):
        raise ValueError(f'images are PIL images, arrays or tensors, not {type(image).__name__}: open a file with PIL.Image.open')
    batch = image[None] if image.ndim == 3 else image  # (B, ...)
    shape = tuple(image.shape)
    if image.dtype == torch.uint8:
        if batch.ndim != 4 or batch.shape[-1] != 3:
            raise ValueError(f'a uint8 image is (H, W, 3), red, green and blue from 0 to 255, and this one is {shape}')
        return batch.permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W)
    if not image.is_floating_point():
        raise ValueError(f'images are uint8 from 0 to 255 or floating point from 0 to 1, not {image.dtype}')
    if batch.ndim != 4 or batch.shape[1] != 3:
        raise ValueError(f'a floating-point image is (3, H, W), red, green and blue from 0 to 1, and this one is {shape}')
    if batch.numel() and not (batch.min() >= 0 and batch.max() <= 1):  # so written that NaN fails too
        raise ValueError(f'a floating-point image has values from 0 to 1, and this one from {batch.min():.3g} to '
                         f'{batch.max():.3g}: undo its normalisation first')
    return 2 * batch.float() - 1  # (B, 3, H, W)


def pixels(image):
    """A PIL image as an array (H, W, 3) of uint8 or, where it has 16 bits, uint16; ``convert('RGB')`` would clip these at 255.

    Raises:
        ValueError: It has other than 8 or 16 bits, so that its range is unknown.
    """
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PNG'):  # as older versions of PIL open them
        return np.repeat(np.asarray(image).astype(np.uint16)[..., None], 3, axis=-1)
    if image.mode in ('I', 'F'):
        raise ValueError(f'the range of an image of PIL mode {image.mode!r} is unknown: scale its values to 0 to 1 and give them '
                         'as a floating-point array (3, H, W)')
    if image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return np.array(image.convert('RGB'))
