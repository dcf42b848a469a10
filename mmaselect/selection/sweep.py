"""The sweep: scores every candidate timestep on a few images, and takes one in the middle of the best."""
import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import diffusers
import torch
from tqdm import tqdm

from mmaselect.extract import Extractor
from mmaselect.extract.fingerprint import weights_hash
from mmaselect.version import __version__

from .candidates import refined_candidates, resolve_candidates
from .choice import spaced_timesteps
from .controls import randomised
from .distributed import gather, rank_and_size
from .images import TensorImages
from .measure import Measurement
from .policy import SelectionPolicy
from .result import SelectionResult
from .scores import build
from .table import Choice, choose

CONTROL_IMAGES = 64
FIRST_IMAGES = 128  # of a sweep that takes more images until its choice is stable
STABLE = 0.95  # probability at which it is


def sweep(extractor: Extractor, images: TensorImages, policy: SelectionPolicy | None = None, *, noise: str = 'seeded',
          noise_seed: int = 0, progress: bool = False) -> SelectionResult:
    """Scores every candidate timestep and picks one in the middle of the best, or a few.

    Where torch.distributed runs, each rank measures its own share of the images and all end with the same result.

    Args:
        extractor (Extractor): Left with the mode, the taps and the weights that it had.
        images (TensorImages): Or whatever has its attributes and methods. The first ``policy.num_images`` are looked at.
        policy (SelectionPolicy | None): What is tried and how it is judged; None is the default.
        noise (str): 'seeded', 'random' or 'none', whichever the features will be used with. Noise that is the same for all images
            is a constant to a head, and noise that differs is not, so that the best timestep is another.
        noise_seed (int): Of the noise where it is 'seeded': that of the backbone.
        progress (bool): Whether the first rank shows a progress bar.

    Raises:
        ValueError: No images, candidates outside the schedule, or fewer than ``num_timesteps`` a gap apart, a score that needs
            labels and gets none, or a budget that is too small.
        FloatingPointError: A feature or a score is not finite.
    """
    policy = policy or SelectionPolicy()
    ts = resolve_candidates(policy.candidates, len(extractor.process))
    count = min(len(images), policy.most_images)
    if not count:
        raise ValueError('the sweep got no images: check that the dataset is not empty and that num_images is at least 1')
    score = build(policy.score, images)
    spaced_timesteps(ts, [0] * len(ts), policy.num_timesteps, policy.gap)  # fails now, not after the work, where they do not fit
    if score.labelled and images.label_kind is None:
        raise ValueError(f'the score {score.name!r} needs labels, and these images have none: choose a score without, such as '
                         'half_consistency')
    start = time.perf_counter()
    with _prepared(extractor, policy), tqdm(desc='timestep sweep', unit=' forwards', total=0,
                                            disable=not progress or rank_and_size()[0] > 0) as bar:
        options = dict(seed=policy.seed, noise=noise, noise_seed=noise_seed, forward_batch=policy.forward_batch,
                       advance=bar.update)
        main = Measurement(extractor, [score], **options)
        # A probe needs many images of each class; what needs no labels shows its bias on few.
        few = count if score.labelled and policy.num_images != 'auto' else min(
            count, FIRST_IMAGES if policy.num_images == 'auto' else count, count if score.labelled else CONTROL_IMAGES)
        budget = math.inf if policy.budget is None else policy.budget - len(policy.controls) * few * len(ts) * main.per_image
        found = _measured(main, images, count, ts, policy, budget, bar)
        controls, forwards = {}, sum(gather(main.forwards))
        for name in policy.controls:
            model = randomised(extractor, policy.seed) if name == 'random weights' else extractor
            other = Measurement(model, [score], noise_images=name == 'noise', **options)
            _extend(other, images, 0, few, ts, bar)
            controls[name] = choose(other, replace(policy, num_timesteps=1), resample=False).timesteps[0]
            forwards += sum(gather(other.forwards))
        taps = tuple(extractor.taps)
    return SelectionResult(
        timestep=found.timesteps[0], timesteps=found.timesteps, tap=found.tap, candidates=found.candidates, taps=taps,
        steps=len(extractor.process), score=score.describe(), policy=policy.record(), num_images=found.num_images, noise=noise,
        noise_seed=noise_seed, forwards=forwards, seconds=time.perf_counter() - start, interval=found.interval,
        probability=found.probability, controls=controls, weights=weights_hash(extractor),
        versions=dict(mmaselect=__version__, torch=torch.__version__, diffusers=diffusers.__version__))


@contextlib.contextmanager
def _prepared(extractor: Extractor, policy: SelectionPolicy) -> Iterator[None]:
    """The extractor in evaluation mode with the taps that the policy scores; afterwards with its own."""
    training, taps = extractor.training, extractor.taps
    extractor.eval()
    try:
        if policy.score_taps is not None:
            extractor.set_taps(policy.taps_for(extractor))
        yield
    finally:
        if policy.score_taps is not None:
            extractor.set_taps(taps)
        extractor.train(training)


def _measured(measurement: Measurement, images: TensorImages, count: int, ts: list[int], policy: SelectionPolicy, budget: float,
              bar: tqdm) -> Choice:
    """The choice of a measurement that has grown as far as its ``count`` images and its budget go."""
    grow = policy.num_images == 'auto'
    start, stop = 0, min(count, FIRST_IMAGES) if grow else count
    each = len(ts) * measurement.per_image
    if stop * each > budget:
        raise ValueError(f'a budget of {budget:.0f} forward passes besides the controls is less than the {stop * each} that '
                         f'{stop} images at {len(ts)} candidates take: raise budget, or lower num_images or candidates')
    while True:
        _extend(measurement, images, start, stop, ts, bar)
        found = choose(measurement, policy)
        start, stop = stop, min(count, 2 * stop)
        if start == stop or found.stability >= STABLE or stop * each > budget:
            break
    while budget < math.inf:
        affordable = (budget - sum(gather(measurement.forwards))) // (start * measurement.per_image)
        more = refined_candidates([c.timestep for c in found.candidates], *found.bounds)[:int(affordable)]
        if not more:
            break
        _extend(measurement, images, start, start, more, bar)
        found = choose(measurement, policy)
    return found


def _extend(measurement: Measurement, images: TensorImages, start: int, stop: int, ts: list[int], bar: tqdm) -> None:
    """Measures the images from ``start`` to ``stop`` too, and these timesteps. What fails on one rank fails on all, which would
    wait for it in vain otherwise."""
    error = None
    try:
        measurement.add(images.batches(start, stop))
        asked = len({*measurement.timesteps, *ts})
        bar.total += measurement.per_image * sum(len(chunk[0]) * (asked - done)
                                                 for chunk, done in zip(measurement.chunks, measurement.measured, strict=True))
        measurement.run(ts)
    except Exception as found:  # whatever it is, the others have to hear of it
        error = found
    for found in gather(error):
        if found is not None:
            raise found
