"""What the choice is measured on: models, real images and their labels."""
import functools
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
MODELS = {'latent': ROOT / 'configs' / 'fashion_dit', 'pixel': ROOT / 'configs' / 'fashion_pixel_dit',
          'flow': ROOT / 'work_dirs' / 'flow_dit'}
BLOCKS = (2, 4, 5, 6)


@dataclass
class Task:
    """A model and labelled images, in a random order."""
    name: str
    model: str
    dataset: str
    extractor: Extractor
    images: TensorImages

    @functools.cached_property
    def latents(self):
        """Of all images, in batches, on the extractor's device; encoded once."""
        device = next(self.extractor.parameters()).device
        with torch.no_grad():
            return [self.extractor.encoder(batch.to(device)) for batch in self.images.images.split(self.images.batch_size)]


def enlarge(images, side):
    """Grey images (N, h, w), 0 to 255, as (N, 3, side, side) in [-1, 1]."""
    images = F.interpolate(images[:, None].float(), (side, side), mode='bilinear', antialias=True)
    return (images / 127.5 - 1).clamp(-1, 1).expand(-1, 3, -1, -1)


def shuffled(count, of):
    """Which ``count`` of ``of`` images, at random but always the same."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(0))[:count]


def fashion(count, side):
    """Images and labels of Fashion-MNIST's test set, which no model here has seen."""
    images = read_image_file(DATA / 'fashion_mnist' / 't10k-images-idx3-ubyte')
    chosen = shuffled(count, len(images))
    return enlarge(images[chosen], side), read_label_file(DATA / 'fashion_mnist' / 't10k-labels-idx1-ubyte')[chosen]


def digits(count, side):
    """scikit-learn's digits, 1,797 images of 8x8 pixels, and their labels. No model here has seen a digit."""
    from sklearn.datasets import load_digits
    loaded = load_digits()
    chosen = shuffled(count, len(loaded.images))
    return enlarge(torch.tensor(loaded.images)[chosen] * 255 / 16, side), torch.tensor(loaded.target)[chosen]


def scenes(count):
    """The fashion scenes and their masks. There are 2,500; the models saw none, but the garments in 2,000 of them."""
    folder = DATA / 'fashion_scenes'
    files = sorted((folder / 'img_dir').glob('train/*.png')) + sorted((folder / 'img_dir').glob('val/*.png'))
    files = [files[index] for index in shuffled(count, len(files))]
    images = np.stack([np.asarray(Image.open(path)) for path in files])
    masks = np.stack([np.asarray(Image.open(folder / 'ann_dir' / path.parent.name / path.name)) for path in files])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(masks).long()


def clean(images):
    return images


def noisy(images):
    """A sensor's white noise of deviation 0.4, where black is -1 and white 1."""
    return (images + 0.4 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


def blurred(images):
    """A Gaussian blur of 3 pixels."""
    return TF.gaussian_blur(images, 19, 3.0)


def jpeg(images):
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


def build(name, images, masks, device):
    """A task by its name, of so many images, or of so many where they have masks; fewer where there are not as many."""
    model, source, degrade = TASKS[name]
    taps = [(block, tap) for block in BLOCKS for tap in TAPS]
    extractor = Extractor.from_pretrained(MODELS[model], taps).eval().to(device)
    side = extractor.family.config.sample_size * extractor.encoder.stride  # of the images that it was made for
    x, y = scenes(masks) if source is scenes else source(images, side)
    dataset = source.__name__ + ('' if degrade is clean else f', {degrade.__name__}')
    return Task(name, model, dataset, extractor, TensorImages(degrade(x), y, 100))
