"""What the choice is measured against: a linear probe for every timestep, block and tap."""
import json
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from mmaselect.extract import seeded_noise
from mmaselect.files import atomic
from mmaselect.selection.scores.probe import pooled
from mmaselect.selection.sweep import weights_hash

# Seconds of this process alone where it computes on CPUs, so that other programs on the machine do not count.
clock = time.perf_counter if torch.cuda.is_available() else time.process_time
RIDGE = 0.01  # penalty per sample, on standardised features


class Ridge:
    """A linear regression on targets, from sums that batches add to: features (N, F), targets (N, C)."""

    def __init__(self):
        self.count, self.sums = 0, None

    def add(self, features, targets):
        features, targets = features.double(), targets.double()
        sums = features.sum(0), targets.sum(0), features.T @ features, features.T @ targets
        self.sums = sums if self.sums is None else [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.count += len(features)

    def fit(self):
        """Weights (F, C) and bias (C,)."""
        mean, target, gram, cross = (s / self.count for s in self.sums)
        deviation = (gram.diag() - mean.square()).clamp_min(0).sqrt()
        scale = torch.where(deviation > 1e-6 * mean.abs().clamp_min(1e-6), 1 / deviation.clamp_min(1e-12), 0)
        gram = (gram - mean[:, None] * mean) * scale[:, None] * scale
        cross = (cross - mean[:, None] * target) * scale[:, None]
        gram.diagonal().add_(RIDGE)
        weights = torch.linalg.solve(gram, cross) * scale[:, None]
        return weights.float(), (target - mean @ weights).float()


def inputs(feature, labels):
    """What a probe sees of a map (B, D, h, w): 2x2-pooled features (B, 4 D) for labels (B,), cells (B h w, D) for masks."""
    return pooled(feature, 2) if labels.ndim == 1 else feature.float().flatten(2).transpose(1, 2).flatten(0, 1)


def targets(feature, labels, classes):
    """One-hot (B, C) for labels (B,); the share of each class in each cell (B h w, C) for masks (B, H, W)."""
    one_hot = F.one_hot(labels.clamp(-1, classes) + 1, classes + 2)[..., 1:-1].float()  # nothing where there is no class
    if labels.ndim == 1:
        return one_hot
    return F.adaptive_avg_pool2d(one_hot.permute(0, 3, 1, 2), feature.shape[-2:]).flatten(2).transpose(1, 2).flatten(0, 1)


class Accuracy:
    """Per cent of images that are right, or, of masks, the mean IoU."""

    def __init__(self, classes, masks):
        self.matrix, self.masks = torch.zeros(classes, classes), masks

    def add(self, outputs, feature, labels):
        if self.masks:
            grid = outputs.view(len(labels), *feature.shape[-2:], -1).permute(0, 3, 1, 2)  # (B, C, h, w)
            outputs = F.interpolate(grid, labels.shape[-2:], mode='bilinear').permute(0, 2, 3, 1)
        classes = len(self.matrix)
        valid = (labels >= 0) & (labels < classes)
        pairs = labels[valid] * classes + outputs.argmax(-1).view(labels.shape)[valid]
        self.matrix += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()

    def value(self):
        right = self.matrix.diag()
        if not self.masks:
            return (100 * right.sum() / self.matrix.sum()).item()
        union = self.matrix.sum(0) + self.matrix.sum(1) - right
        return (100 * (right / union.clamp_min(1))[union > 0].mean()).item()


def precision(bf16):
    """What features are computed in: float32, or bfloat16 where autocast has it, half the time on CPUs with avx512_bf16."""
    return torch.autocast('cuda' if torch.cuda.is_available() else 'cpu', torch.bfloat16, enabled=bf16)


def remembered(task, timesteps, path, bf16):
    """``exhaustive``, read from the file ``path``, if any, where it was done before with the same images, model and taps."""
    if path is None:
        return exhaustive(task, timesteps)
    asked = dict(timesteps=timesteps, taps=[list(tap) for tap in task.extractor.taps], train=len(task.train), test=len(task.test),
                 images=task.train.images.double().sum().item(), weights=weights_hash(task.extractor), bf16=bf16)
    if path.is_file():
        found = json.loads(path.read_text())
        if found['asked'] == asked:
            return torch.tensor(found['accuracy']), found['seconds']
    accuracy, seconds = exhaustive(task, timesteps)
    with atomic(path) as part:
        part.write_text(json.dumps(dict(asked=asked, accuracy=accuracy.tolist(), seconds=seconds)))
    return accuracy, seconds


@torch.no_grad()
def exhaustive(task, timesteps):
    """Accuracy on the test images of a probe for each timestep and tap, (T, taps), and the CPU seconds that it took.

    The features are those that a backbone gives: every image gets the same noise.
    """
    start, table = clock(), []
    classes = int(max(images.labels[images.labels != 255].max() for images in (task.train, task.test))) + 1

    device, masks = next(task.extractor.parameters()).device, task.train.labels.ndim == 3

    def encoded(images):
        """Batches of latents, and labels on the CPU."""
        size = max(1, 100 * 64**2 // images.images.shape[-1] // images.images.shape[-2])
        for batch, labels in zip(images.images.split(size), images.labels.split(size), strict=True):
            yield task.extractor.encoder(batch.to(device)), labels

    train, test = list(encoded(task.train)), list(encoded(task.test))
    noise = seeded_noise(train[0][0].shape[1:], 0)[None]
    for t in tqdm(timesteps, desc=f'{task.name}: exhaustive search', unit=' timesteps'):
        probes = [Ridge() for _ in task.extractor.taps]
        for latent, labels in train:
            maps, labels = task.extractor.features(latent, t, noise), labels.to(device)
            wanted = targets(maps[0], labels, classes)  # maps of all taps have one size
            for probe, feature in zip(probes, maps, strict=True):
                probe.add(inputs(feature, labels), wanted)
        fits, right = [probe.fit() for probe in probes], [Accuracy(classes, masks) for _ in probes]
        for latent, labels in test:
            labels = labels.to(device)
            for (weights, bias), metric, feature in zip(fits, right, task.extractor.features(latent, t, noise), strict=True):
                metric.add(inputs(feature, labels) @ weights + bias, feature, labels)
        table.append([metric.value() for metric in right])
    return torch.tensor(table), clock() - start
