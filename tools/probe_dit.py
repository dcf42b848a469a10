"""What the features of a DiT are worth to a linear classifier, by timestep and block, in closed form.

    python tools/probe_dit.py configs/cifar10_dit --train data/cifar10/train --test data/cifar10/test --timesteps 0 50 100

TRAIN and TEST are folders with one folder of images a class. Each block's map is averaged to a grid of 4 x 4, standardised, and
a ridge regression on one-hot labels is fitted; its penalty is the best of five on a tenth of the training images that the fit
does not see. ``--blocks`` that are joined by a plus, as 3+5, are concatenated. Nothing is learned by gradient descent, so there
is no schedule to blame.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pretrain_data import resized, scaled
from tqdm import tqdm

from mmaselect.extract import Extractor
from mmaselect.files import atomic

PENALTIES = 0.01, 0.03, 0.1, 0.3, 1.0  # per image, on standardised features


def classes_of(folder):
    """Names of the folders in a folder, in order."""
    return sorted(p.name for p in Path(folder).iterdir() if p.is_dir()) if Path(folder).is_dir() else []


def read_labelled(folder, size, per_class=None, seed=0):
    """Images as uint8 (N, size, size, 3) and labels (N,) of a folder that has one folder a class, the same number of each.

    Raises:
        SystemExit: The folder has fewer than two such folders, or one without images.
    """
    classes = classes_of(folder)
    if len(classes) < 2:
        raise SystemExit(f'{folder}: the probe needs a folder with one folder of images for each of two or more classes')
    images, labels, order = [], [], np.random.RandomState(seed)
    for label, name in enumerate(Path(folder) / name for name in classes):
        files = sorted(p for p in name.rglob('*') if p.suffix.lower() in ('.png', '.jpg', '.jpeg'))
        if not files:
            raise SystemExit(f'{name} has no PNG or JPEG files')
        if per_class:
            files = [files[i] for i in order.permutation(len(files))[:per_class]]
        for file in files:
            with Image.open(file) as picture:
                images.append(resized(picture, size))
        labels += [label] * len(files)
    return np.stack(images), torch.tensor(labels)


def left_out_accuracy(features, labels, penalty=0.1):
    """Accuracy in percent of a ridge regression on (N, F) features, each image predicted from all others, in closed form.

    The residual of an image that the fit leaves out is that of the full fit over 1 - H_ii, H the hat matrix (Hastie, Tibshirani
    and Friedman, 'The Elements of Statistical Learning', section 7.10), which is alpha_i / (K + penalty)^-1_ii.
    """
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    kernel = x @ x.T + penalty * len(x) * torch.eye(len(x))
    classes = F.one_hot(labels).float()
    targets = classes - classes.mean(0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
    predicted = classes.mean(0) + targets - inverse @ targets / inverse.diagonal()[:, None]
    return 100 * (predicted.argmax(1) == labels).float().mean().item()


def ridge_accuracy(train, train_labels, test, test_labels):
    """Accuracy in percent on ``test`` of a ridge regression on ``train``, (N, F) each, its penalty chosen on a tenth of train."""
    held = torch.arange(len(train), device=train.device) % 10 == 9
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).to(train.device)
    train, train_labels = train[order], train_labels[order]
    classes = F.one_hot(train_labels).float()

    def moments(x, y):
        mean, deviation = x.mean(0), x.std(0) + 1e-6
        x = (x - mean) / deviation
        return mean, deviation, y.mean(0), x.T @ x, x.T @ (y - y.mean(0))

    def accuracy(fit, penalty, count, x, labels):
        mean, deviation, prior, gram, projected = fit
        ridge = penalty * count * torch.eye(len(gram)).to(gram)
        weights = torch.cholesky_solve(projected, torch.linalg.cholesky(gram + ridge))
        return 100 * (prior + (x - mean) / deviation @ weights).argmax(1).eq(labels).float().mean().item()

    fit = moments(train[~held], classes[~held])
    best = max(PENALTIES, key=lambda p: accuracy(fit, p, (~held).sum().item(), train[held], train_labels[held]))
    return accuracy(moments(train, classes), best, len(train), test, test_labels)


def pooled(maps, grid=4):
    """(B, D, h, w) to (B, D * grid * grid)."""
    return F.adaptive_avg_pool2d(maps.float(), grid).flatten(1)


@torch.no_grad()
def block_features(extractor, images, timestep, batch=100):
    """The pooled features (N, F) of every block that the extractor taps, of uint8 images (N, H, W, 3)."""
    rows = []
    for start in range(0, len(images), batch):
        x = scaled(torch.from_numpy(images[start:start + batch]))  # (B, 3, H, W)
        rows.append([pooled(m) for m in extractor(x.to(next(extractor.parameters()).device), timestep)])
    return [torch.cat(block) for block in zip(*rows, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', help='folder or hub id of a pretrained DiT')
    parser.add_argument('--train', type=Path, required=True)
    parser.add_argument('--test', type=Path, required=True)
    parser.add_argument('--size', type=int, default=32, help='images are resized to this side, in pixels')
    parser.add_argument('--per-class', type=int, help='training images of each class; all where it is left out')
    parser.add_argument('--timesteps', type=int, nargs='+', default=[0, 50, 100])
    parser.add_argument('--blocks', nargs='+', default=['all'], help='as 3 4 3+5, counted from 0; all is each by itself')
    parser.add_argument('--seed', type=int, default=0, help='of the training images, where they are not all')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=Path, help='file that the table is written to')
    args = parser.parse_args()
    extractor = Extractor.from_pretrained(args.model).eval().to(args.device)
    names = [str(i) for i in range(extractor.family.depth)] if args.blocks == ['all'] else args.blocks
    groups = [tuple(int(i) for i in name.split('+')) for name in names]
    place = {block: index for index, block in enumerate(sorted({i for group in groups for i in group}))}
    extractor.set_taps([(block, 'hidden') for block in place])
    if classes_of(args.train) != classes_of(args.test):
        parser.error(f'{args.train} and {args.test} have folders of other names, so that labels do not mean the same')
    (train, train_labels), (test, test_labels) = (read_labelled(folder, args.size, count, args.seed)
                                                  for folder, count in ((args.train, args.per_class), (args.test, None)))
    rows = []
    for timestep in tqdm(args.timesteps):
        features = [block_features(extractor, images, timestep) for images in (train, test)]
        for name, group in zip(names, groups, strict=True):
            x, y = (torch.cat([part[place[i]] for i in group], 1) for part in features)
            found = ridge_accuracy(x, train_labels.to(x.device), y, test_labels.to(x.device))
            rows.append(dict(timestep=timestep, blocks=name, accuracy=round(found, 2), labels=len(train)))
            tqdm.write(f'timestep {timestep} blocks {name}: {found:.2f} %')
    if args.json:
        with atomic(args.json) as part:
            part.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
