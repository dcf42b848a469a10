"""One sweep over the candidate timesteps: images are encoded once, the noise is the same for every candidate."""
import importlib.metadata
import math
import time

import torch
import torch.distributed as dist
from tqdm import tqdm

from mmaselect.extract.noise import mix, seeded_noise

from . import candidates as timesteps
from .result import Candidate, SelectionResult
from .scores import build
from .views import augment


def batches_of(images, batch_size=16, rank=0, ranks=1):
    """This rank's share of a tensor of images (N, 3, H, W), as ``sweep`` takes them."""
    indices = range(rank, len(images), ranks)
    for start in range(0, len(indices), batch_size):
        chunk = list(indices[start:start + batch_size])
        yield chunk, images[chunk]


@torch.no_grad()
def sweep(extractor, batches, *, candidates=20, score='view_consistency', seed=0, forward_batch=64, progress=None):
    """Scores every candidate timestep and picks the best.

    Where torch.distributed runs, each rank gives its own share of the images and all end with the same result.

    Args:
        extractor (FeatureExtractor): Left in the mode and with the weights it had.
        batches (Iterable[tuple[list[int], Tensor]]): Batches of images (B, 3, H, W) in [-1, 1], each with the images' indices,
            which are unique over all ranks: noise and augmentation depend on them and the seed alone.
        candidates (int | Sequence[int]): Timesteps, or how many to spread over the schedule.
        score (str | dict | Score): See ``scores``.
        seed (int): Of noise and augmentation.
        forward_batch (int): Latents per forward pass of the transformer; several candidates share one.
        progress (int | None): Images of this rank, for a progress bar on the first rank; None shows none.

    Returns:
        SelectionResult

    Raises:
        ValueError: No images, bad candidates or an unknown score.
        FloatingPointError: A feature or a score is not finite.
    """
    score = build(score)
    ts = timesteps.resolve(candidates, len(extractor.process))
    rank = dist.get_rank() if dist.is_initialized() else 0
    training = extractor.training
    extractor.eval()
    start = time.perf_counter()
    rows = {}  # image index -> (candidates, taps) of rows (K,)
    forwards = 0
    try:
        bar = tqdm(desc='timestep sweep', unit=' images', total=progress, disable=progress is None or rank > 0)
        for indices, images in batches:
            latents = [extractor.encoder(view) for view in _views(images, indices, score, seed)]
            noises = [torch.stack([seeded_noise(latent.shape[1:], seed, index, view) for index in indices]).to(latent.device)
                      for view, latent in enumerate(latents)]
            table = _score_rows(extractor, torch.cat(latents), torch.cat(noises), ts, score, max(1, forward_batch))
            rows.update(zip(indices, table.unbind(), strict=True))
            forwards += len(ts) * sum(map(len, latents))
            bar.update(len(indices))
        bar.close()
    finally:
        extractor.train(training)
    rows, forwards = _gather(rows, forwards)
    if not rows:
        raise ValueError('the sweep got no images: check that the dataset is not empty and that num_images is at least 1')
    stacked = torch.stack([rows[index] for index in sorted(rows)]).double()  # (N, candidates, taps, K)
    table = [_candidate(extractor, t, stacked[:, k], score) for k, t in enumerate(ts)]
    best = max(table, key=lambda c: c.score)  # the first, that is the cleanest, where several are equal
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'diffusers')}
    return SelectionResult(timestep=best.timestep, candidates=tuple(table), taps=extractor.taps, score=score.describe(),
                           num_images=len(rows), seed=seed, forwards=forwards, seconds=time.perf_counter() - start,
                           versions=versions)


def _views(images, indices, score, seed):
    """The batch as many times as the score has views; augmented ones depend on (seed, image, view) alone."""
    for view in range(score.views):
        if score.augmented:
            yield torch.stack([augment(image, torch.Generator().manual_seed(mix(seed, index, view)))
                               for image, index in zip(images, indices, strict=True)])
        else:
            yield images


def _score_rows(extractor, latents, noises, ts, score, forward_batch):
    """Rows (B, candidates, taps, K) on the CPU, from the latents (views * B, C, h, w) of all views."""
    per_candidate = [[] for _ in ts]
    group = max(1, forward_batch // len(latents))  # candidates per forward pass
    for first in range(0, len(ts), group):
        chosen = ts[first:first + group]
        t = torch.tensor(chosen).repeat_interleave(len(latents))
        maps = extractor.features(latents.repeat(len(chosen), 1, 1, 1), t, noises.repeat(len(chosen), 1, 1, 1))
        for tap, values in zip(extractor.taps, maps, strict=True):
            for offset, own in enumerate(values.chunk(len(chosen))):
                if not own.isfinite().all():
                    raise FloatingPointError(f'the feature {tap} is not finite at t={chosen[offset]}: run the DiT and the VAE in '
                                             'float32 or bfloat16 (float16 overflows), and check the weights')
                per_candidate[first + offset].append(score.observe(own.chunk(score.views)).cpu())
    return torch.stack([torch.stack(taps, 1) for taps in per_candidate], 1)


def _candidate(extractor, t, rows, score):
    """Scores one candidate from its rows (N, taps, K)."""
    values = tuple(score.value(rows[:, tap]) for tap in range(rows.shape[1]))
    if not all(map(math.isfinite, values)):
        raise FloatingPointError(f'the score {score.name!r} at t={t} is {values}, not a finite number')
    return Candidate(t, extractor.process.sigma[t].item(), extractor.process.log_snr(t), values, sum(values) / len(values))


def _gather(rows, forwards):
    """All ranks' rows and forward passes, on every rank."""
    if not dist.is_initialized():
        return rows, forwards
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (rows, forwards))
    return {index: row for own, _ in gathered for index, row in own.items()}, sum(count for _, count in gathered)
