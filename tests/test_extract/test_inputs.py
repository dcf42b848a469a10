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


@pytest.mark.parametrize('size', [0, -1, 1.5, '64', True, (3,), (3, 0), (4, 4, 4)])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match=r'size=\S.*: the height and width in pixels'):
        to_batch(PIXELS, size=size)


@pytest.mark.parametrize('mode', ['I;16', 'I;16B'])
def test_sixteen_bits_keep_their_range(mode, tmp_path):
    """``convert('RGB')`` would make all above 255 white."""
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 0, 257, ..., 65535
    image = Image.frombytes(mode, (16, 16), levels.astype('>u2' if mode.endswith('B') else '<u2').tobytes())
    expected = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16) / 127.5 - 1
    torch.testing.assert_close(to_batch(image), expected)
    Image.fromarray(levels).save(tmp_path / 'levels.png')  # some versions of PIL open it as 'I'
    torch.testing.assert_close(to_batch(Image.open(tmp_path / 'levels.png')), expected)
    torch.testing.assert_close(to_batch(np.repeat(levels[..., None], 3, -1)), expected)


@pytest.mark.parametrize('mode', ['I', 'F'])
def test_an_unknown_range_is_refused(mode):
    with pytest.raises(ValueError, match=f'mode {mode!r} is unknown: scale its values'):
        to_batch(Image.new(mode, (4, 4), 70000))


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'PA', 'P', 'RGB', 'L'])
def test_what_is_transparent_is_white(mode):
    """Black below it, as editors leave it."""
    pixels = np.zeros((2, 4, 4), np.uint8)
    pixels[:, 2:, 3] = 255
    pixels[:, 3, :3] = 128
    image = Image.fromarray(pixels)
    if mode in ('P', 'RGB', 'L'):  # one colour is transparent, or one of the palette
        image = Image.fromarray(pixels[..., 0] + 3 * (pixels[..., 3] > 0).astype(np.uint8)).convert(mode)
        image.info['transparency'] = (0, 0, 0) if mode == 'RGB' else image.getpixel((0, 0))
        expected = [255, 255, 3, 131]
    else:
        image, expected = image.convert(mode), [255, 255, 0, 128]
    torch.testing.assert_close(to_batch(image)[0, 0, 0], torch.tensor(expected) / 127.5 - 1)
