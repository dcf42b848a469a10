"""Linear heads of tools/compare_labels.py, trained to convergence by L-BFGS, so that what they reach is the features' and not a
schedule's."""
import torch
import torch.nn.functional as F

PENALTIES = 1.0, 0.1, 1e-2, 1e-3  # on the squared weights of standardised features, per sample
ITERATIONS = 100  # of L-BFGS at most
MOST = 100_000  # cells of masks that a head is fitted to: a random choice of them where there are more
FEW = 20_000  # of these, the cells by which its penalty is chosen
FOLDS, CROSS = 5, 200  # up to so many samples all folds are held out in turn, and above one
TOGETHER = 32  # masks that are compared at a time
DETAIL = 4  # parts of a cell along each side that a head for masks predicts


def standardise(features):
    """Mean (F,) and inverse deviation (F,) of features (N, F); 0 where a feature is constant."""
    mean, deviation = features.mean(0), features.std(0)
    return mean, torch.where(deviation > 1e-6 * features.abs().amax(0), 1 / deviation.clamp_min(1e-12), 0)


def logistic(x, targets, penalty, start=None):
    """Weights (F + 1, P, C) of a multinomial logistic regression, the last row its offsets.

    Args:
        x (Tensor): (N, F), standardised.
        targets (Tensor): (N, P, C), shares of the classes in each of the P parts of a cell; without a class all are 0.
        penalty (float): The loss is the mean cross-entropy plus half the penalty times the squared weights.
        start (Tensor | None): Weights to begin with.
    """
    _, parts, classes = targets.shape
    weights = (torch.zeros(x.shape[1] + 1, parts, classes) if start is None else start.clone()).requires_grad_()
    total = targets.sum().clamp_min(1) / parts
    optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-7, history_size=10,
                                  line_search_fn='strong_wolfe')

    def loss():
        optimizer.zero_grad()
        logits = (x @ weights[:-1].flatten(1) + weights[-1].flatten()).unflatten(1, (parts, classes))
        value = -(targets * logits.log_softmax(2)).sum() / total + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value
    optimizer.step(loss)
    return weights.detach()


def predict(x, weights):
    """Logits (N, P, C)."""
    return torch.einsum('nf,fpc->npc', x, weights[:-1]) + weights[-1]


def fit(features, targets, group):
    """A head whose penalty is the one of ``PENALTIES`` under which held-out samples are the most probable.

    Args:
        features (Tensor): (N, F).
        targets (Tensor): (N, P, C), see ``logistic``.
        group (Tensor): (N,) numbers; samples of one number are held out together.

    Returns:
        Callable: Features (M, F) to logits (M, P, C).
    """
    if len(features) > FEW:
        chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MOST]
        features, targets, group = features[chosen], targets[chosen], group[chosen]
    mean, scale = standardise(features)
    x, basis = (features - mean) * scale, None
    if len(x) < x.shape[1]:  # the solution lies in what the samples span
        values, vectors = torch.linalg.eigh((x @ x.T).double())
        kept = values > 1e-6 * values[-1]
        basis = x.T @ (vectors[:, kept] / values[kept].sqrt()).float()  # (F, at most N), orthonormal
        x = x @ basis
    some, shown, folds = x[:FEW], targets[:FEW], group[:FEW] % FOLDS
    losses = torch.zeros(len(PENALTIES))
    for fold in range(FOLDS if len(x) <= CROSS else 1):
        held, weights, path = folds == fold, None, []
        for place, penalty in enumerate(PENALTIES):
            weights = logistic(some[~held], shown[~held], penalty, weights)
            losses[place] -= (shown[held] * predict(some[held], weights).log_softmax(2)).sum()
            path.append(weights)
    best = losses.argmin()
    weights = logistic(x, targets, PENALTIES[best], path[best])
    if basis is not None:
        weights = torch.cat([torch.einsum('fn,npc->fpc', basis, weights[:-1]), weights[-1:]])
    return lambda others: predict((others - mean) * scale, weights)


def classify(train, labels, test, truth, classes):
    """Per cent of the test images whose class a head names: features (N, F), labels (N,), features (M, F), labels (M,)."""
    head = fit(train, F.one_hot(labels, classes)[:, None].float(), torch.arange(len(labels)) // classes)
    return (100 * (head(test)[:, 0].argmax(1) == truth).double().mean()).item()


def shares(masks, size, classes):
    """Share of each class in each cell of a grid of ``size``, (N, C, h, w), of masks (N, H, W); other values are no class."""
    one_hot = F.one_hot(masks.clamp(max=classes).long(), classes + 1)[..., :-1].permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(one_hot, size)


def segment(train, masks, test, truth, classes, detail):
    """Mean IoU, in per cent, of a head that predicts detail x detail classes per cell, enlarged to the masks.

    Args:
        train, test (Tensor): (N, D, h, w) and (M, D, h, w).
        masks, truth (Tensor): (N, H, W) and (M, H, W) uint8; 255 is ignored.
        classes (int): How many.
        detail (int): Parts of a cell along each side.
    """
    h, w = train.shape[-2:]
    targets = torch.cat([F.pixel_unshuffle(shares(own, (h * detail, w * detail), classes), detail)
                         for own in masks.split(TOGETHER)])  # (N, C * parts, h, w), class by class
    targets = targets.permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, (classes, -1)).transpose(1, 2)  # (N h w, parts, C)
    head = fit(train.permute(0, 2, 3, 1).flatten(0, 2).float(), targets, torch.arange(len(train)).repeat_interleave(h * w))
    matrix = torch.zeros(classes, classes, dtype=torch.long)
    for own, mask in zip(test.split(TOGETHER), truth.split(TOGETHER), strict=True):
        logits = head(own.permute(0, 2, 3, 1).flatten(0, 2).float())  # (B h w, parts, C)
        logits = logits.transpose(1, 2).flatten(1).unflatten(0, (-1, h, w)).permute(0, 3, 1, 2)  # (B, C * parts, h, w)
        said = F.interpolate(F.pixel_shuffle(logits, detail), mask.shape[-2:], mode='bilinear').argmax(1)
        seen = mask < classes
        matrix += torch.bincount(mask[seen].long() * classes + said[seen], minlength=classes**2).view(classes, classes)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
    return (100 * (matrix.diag() / union.clamp_min(1))[union > 0].double().mean()).item()


def score(train, labels, test, truth, classes):
    """Accuracy of a head on vectors (N, F) or mean IoU of one on maps (N, D, h, w)."""
    if train.ndim == 2:
        return classify(train.float(), labels, test.float(), truth, classes)
    return segment(train, labels, test, truth, classes, DETAIL)


def svm(train, labels, test, truth):
    """Accuracy of scikit-learn's RBF SVM of C=10."""
    from sklearn.svm import SVC
    return 100 * SVC(C=10, gamma='scale').fit(train.numpy(), labels.numpy()).score(test.numpy(), truth.numpy())
