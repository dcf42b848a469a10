import numpy as np
import pytest
import torch
from PIL import Image

from mmaselect.extract.inputs import to_batch

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)  # (H, W, 3)
FLOATS = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255  # (3, H, W)
EXPECTED = torch.tensor([[[[float(PIXELS[y, x, c]) / 127.5 - 1 for x in range(20)] for y in range(12)] for c in range(3)]])


@pytest.mark.parametrize('image', [
    Image.fromarray(PIXELS), PIXELS, torch.from_numpy(PIXELS), FLOATS, FLOATS.double(), FLOATS.numpy(), PIXELS[::-1].copy()[::-1],
    PIXELS[None], FLOATS[None], [PIXELS],
])
def test_all_kinds_of_images_are_one(image):
    batch = to_batch(image)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, EXPECTED)


def test_a_list_may_mix_kinds_and_batches():
    batch = to_batch([Image.fromarray(PIXELS), FLOATS, torch.stack([FLOATS, FLOATS])])
    torch.testing.assert_close(batch, EXPECTED.repeat(4, 1, 1, 1))


def test_grey_pictures_become_colour():
    batch = to_batch(Image.fromarray(PIXELS[..., 0]))
    torch.testing.assert_close(batch, EXPECTED[:, :1].repeat(1, 3, 1, 1))


def test_size_scales_each_image_as_torchvision_does():
    from torchvision.transforms.functional import resize
    other = FLOATS[:, :7, :9]
    batch = to_batch([FLOATS, other], size=(6, 8))
    torch.testing.assert_close(batch, torch.stack([2 * resize(image, [6, 8], antialias=True) - 1 for image in (FLOATS, other)]))
    assert to_batch(PIXELS, size=5).shape == (1, 3, 5, 5)


@pytest.mark.parametrize('images, message', [
    ('cat.jpg', 'open a file with PIL'), ([], 'no images'), (PIXELS[:0, :0][None][:0], 'no images'),
    (np.moveaxis(PIXELS, -1, 0), r'uint8 image is \(H, W, 3\)'), (PIXELS[..., 0], r'uint8 image is \(H, W, 3\)'),
    (PIXELS / 255, r'floating-point image is \(3, H, W\)'), (2 * FLOATS - 1, 'from 0 to 1, and this one from -1'),
    (FLOATS * 255, 'from 0 to 1'), (FLOATS * torch.nan, 'from 0 to 1'), (PIXELS.astype(int), 'not torch.int64'),
    ([PIXELS, PIXELS[:7]], r'differ in size, \(7, 20\) and \(12, 20\).*set size='),
])
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        to_batch(images)
