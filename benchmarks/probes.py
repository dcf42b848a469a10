"""What the choice is measured against: a linear probe for every timestep, block and tap."""
import time

import torch
import torch.nn.functional as F

from mmaselect.selection.scores.probe import pooled

PARTS = 3  # of a task's images: probes are fitted on one and tested on the others
TOGETHER = 50  # maps that are enlarged at once: more do not fit into a core's cache
PENALTIES = 1.0, 0.1, 0.01, 1e-3, 1e-4  # per sample, on standardised features


def clock():
    """Seconds of this process alone where it computes on CPUs, so that other programs on the machine do not count; with a GPU
    those of the wall when it is done with what it was told to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def fit(features, targets):
    """A ridge regression of targets (N, C) on features (N, F), as a function of other features.

    Its penalty is the one of ``PENALTIES`` under which most samples are classified right by the fit of all others (leave-one-out,
    from the hat matrix): no single one suits both the features of a low and those of a high timestep. In float64, since channels
    are so much alike that float32 loses what a small penalty leaves.
    """
    x, y = features.double(), targets.double()
    n, mean, target, deviation = len(x), x.mean(0), y.mean(0), x.std(0)
    scale = torch.where(deviation > 1e-6 * x.abs().amax(0), 1 / deviation.clamp_min(1e-12), 0)  # (F,)
    x, y = (x - mean) * scale, y - target
    if n < x.shape[1]:  # the smaller of the two matrices has the same eigenvalues
        values, vectors = torch.linalg.eigh(x @ x.T / n)
        kept = values > 1e-12 * values[-1]
        values = values[kept]
        vectors = x.T @ vectors[:, kept] / (n * values).sqrt()
    else:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
    cross = vectors.T @ (x.T @ y / n)  # (F, C)
    x, y, classes = (x @ vectors).float(), y.float(), targets.argmax(1)

    def right(penalty):
        shrunk = 1 / (values.clamp_min(0) + penalty)  # (F,)
        own = x.square() @ shrunk.float() / n + 1 / n  # (N,), the diagonal of the hat matrix; the mean is refitted as well
        left = (y - x @ (cross * shrunk[:, None]).float()) / (1 - own)[:, None]
        named = (y - left + target.float()).argmax(1)
        return ((named == classes) & (own < 0.99)).sum().item()  # of what is fitted freely nothing is left but rounding
    penalty = max(PENALTIES, key=right)
    weights = scale[:, None] * (vectors @ (cross / (values + penalty)[:, None]))  # (F, C)
    return lambda others: others @ weights.float() + (target - mean @ weights).float()


def inputs(feature, labels):
    """What a probe sees of a map (B, D, h, w): 2x2-pooled features (B, 1, 4 D) for labels (B,), cells (B, h w, D) for masks."""
    return pooled(feature, 2)[:, None] if labels.ndim == 1 else feature.float().flatten(2).transpose(1, 2)


def targets(grid, labels, classes):
    """One-hot (B, 1, C) for labels (B,); the share of each class in each cell of the grid (B, h w, C) for masks (B, H, W)."""
    one_hot = F.one_hot(labels.clamp(-1, classes) + 1, classes + 2)[..., 1:-1].float()  # nothing where there is no class
    if labels.ndim == 1:
        return one_hot[:, None]
    return F.adaptive_avg_pool2d(one_hot.permute(0, 3, 1, 2), grid).flatten(2).transpose(1, 2)


def accuracy(outputs, grid, labels, classes):
    """Per cent of the labels (B,) that the outputs (B, 1, C) name; for masks (B, H, W) the mean IoU of outputs (B, h w, C)."""
    if labels.ndim == 1:
        return (100 * (outputs[:, 0].argmax(1) == labels).double().mean()).item()
    maps = outputs.transpose(1, 2).unflatten(2, grid)  # (B, C, h, w)
    matrix = torch.zeros(classes + 1, classes, dtype=torch.long, device=labels.device)  # the last row: pixels without a class
    for own, truth in zip(maps.split(TOGETHER), labels.split(TOGETHER), strict=True):
        said = F.interpolate(own, truth.shape[-2:], mode='bilinear').argmax(1)  # (TOGETHER, H, W)
        truth = truth.where((truth >= 0) & (truth < classes), classes)
        matrix += torch.bincount((truth * classes + said).flatten(), minlength=matrix.numel()).view_as(matrix)
    matrix = matrix[:classes]
    right = matrix.diag()
    union = matrix.sum(0) + matrix.sum(1) - right
    return (100 * (right / union.clamp_min(1))[union > 0].double().mean()).item()


def tested(features, labels, classes, grid, fitted):
    """What probes of one tap are worth, on images that they were not fitted on.

    Args:
        features (Tensor): (N, m, F), as ``inputs`` gives them.
        labels (Tensor): (N,) or (N, H, W).
        classes (int): How many there are.
        grid (tuple[int, int]): Of the feature map.
        fitted (Sequence[Tensor]): For each of ``PARTS`` the images that its probe is fitted on: some of ``part::PARTS``.

    Returns:
        list[list[float | None]]: Accuracies (PARTS, PARTS) in per cent, by the part of the fit and that of the test.
    """
    wanted = targets(grid, labels, classes)  # (N, m, C)
    probes = [fit(features[own].flatten(0, 1), wanted[own].flatten(0, 1)) for own in fitted]
    return [[None if part == other else accuracy(probe(features[other::PARTS]), grid, labels[other::PARTS], classes)
             for other in range(PARTS)] for part, probe in enumerate(probes)]
