"""What the choice is measured on: models, real images and their labels."""
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.datasets.mnist import read_image_file, read_label_file

from mmaselect.extract import TAPS, Extractor
from mmaselect.selection import TensorImages

ROOT = Path(__file__).parents[1]
DATA = ROOT / 'data'
MODELS = {'latent': ROOT / 'configs' / 'fashion_dit', 'pixel': ROOT / 'work_dirs' / 'pixel_dit',
          'flow': ROOT / 'work_dirs' / 'flow_dit'}
BLOCKS = (2, 4, 5, 6)
SIZE = 64


@dataclass
class Task:
    """Images to choose on and to fit probes on, others to test them on."""
    name: str
    model: str
    dataset: str
    extractor: Extractor
    train: TensorImages
    test: TensorImages


def enlarge(images):
    """Grey images (N, h, w), 0 to 255, as (N, 3, 64, 64) in [-1, 1]."""
    images = F.interpolate(images[:, None].float(), (SIZE, SIZE), mode='bilinear', antialias=True)
    return (images / 127.5 - 1).clamp(-1, 1).expand(-1, 3, -1, -1)


def drawn(count, of, seed):
    """Which ``count`` of ``of`` images, at random by the seed."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count]


def fashion(train, test, seed):
    """Fashion-MNIST: images, labels, images, labels."""
    for part, count in (('train', train), ('t10k', test)):
        images = read_image_file(DATA / 'fashion_mnist' / f'{part}-images-idx3-ubyte')
        chosen = drawn(count, len(images), seed)
        yield enlarge(images[chosen])
        yield read_label_file(DATA / 'fashion_mnist' / f'{part}-labels-idx1-ubyte')[chosen]


def digits(train, test, seed):
    """scikit-learn's digits, 1,797 images of 8x8 pixels: images, labels, images, labels. No model here has seen a digit."""
    from sklearn.datasets import load_digits
    loaded = load_digits()
    images, labels = enlarge(torch.tensor(loaded.images) * 255 / 16), torch.tensor(loaded.target)
    chosen = drawn(len(images), len(images), seed)
    test = min(test, len(images) // 3)
    for part in (chosen[test:test + train], chosen[:test]):
        yield images[part]
        yield labels[part]


def scenes(train, test, seed):
    """The fashion scenes: images, masks, images, masks."""
    for split, count in (('train', train), ('val', test)):
        files = sorted((DATA / 'fashion_scenes' / 'img_dir' / split).glob('*.png'))
        files = [files[index] for index in drawn(min(count, len(files)), len(files), seed)]
        images = np.stack([np.asarray(Image.open(path)) for path in files])
        masks = np.stack([np.asarray(Image.open(DATA / 'fashion_scenes' / 'ann_dir' / split / path.name)) for path in files])
        yield torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        yield torch.from_numpy(masks).long()


def clean(images, seed):
    return images


def noisy(images, seed):
    """A sensor's white noise of deviation 0.4, where black is -1 and white 1."""
    return (images + 0.4 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


def blurred(images, seed):
    """A Gaussian blur of 3 pixels."""
    return TF.gaussian_blur(images, 19, 3.0)


def jpeg(images, seed):
    """JPEG of quality 5."""
    out = []
    for image in images:
        file = io.BytesIO()
        TF.to_pil_image(image / 2 + 0.5).save(file, 'jpeg', quality=5)
        out.append(TF.to_tensor(Image.open(file)) * 2 - 1)
    return torch.stack(out)


TASKS = {  # name: model, images, what was done to them
    'classification': ('latent', fashion, clean),
    'segmentation': ('latent', scenes, clean),
    'pixel': ('pixel', fashion, clean),
    'flow': ('flow', fashion, clean),
    'digits': ('latent', digits, clean),
    'noisy': ('latent', fashion, noisy),
    'noisy pixel': ('pixel', fashion, noisy),
    'noisy segmentation': ('latent', scenes, noisy),
    'blurred': ('latent', fashion, blurred),
    'jpeg segmentation': ('latent', scenes, jpeg)}


def check(names):
    """Ends the program where something is missing, before hours have gone into what comes before it."""
    for model, images, _ in map(TASKS.get, names):
        if not (MODELS[model] / 'loss.png').is_file():
            raise SystemExit(f'{MODELS[model]} is missing: make it with `make {MODELS[model].relative_to(ROOT)}/loss.png`')
        if images is digits and not importlib.util.find_spec('sklearn'):
            raise SystemExit('the digits are scikit-learn\'s: pip install scikit-learn')


def build(name, train, test, seed):
    """A task by its name; the images of a seed are others than those of another."""
    model, images, degrade = TASKS[name]
    folder = MODELS[model]
    taps = [(block, tap) for block in BLOCKS for tap in TAPS]
    x, y, test_x, test_y = images(train, test, seed)
    dataset = images.__name__ + ('' if degrade is clean else f', {degrade.__name__}')
    return Task(name, model, dataset, Extractor.from_pretrained(folder, taps).eval(),
                TensorImages(degrade(x, 2 * seed), y), TensorImages(degrade(test_x, 2 * seed + 1), test_y))
