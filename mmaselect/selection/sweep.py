"""The sweep: scores candidate timesteps on a few images, and takes one in the middle of the best."""
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import torch

from mmaselect.extract import Extractor
from mmaselect.extract.fingerprint import weights_hash
from mmaselect.version import __version__

from .candidates import refined_candidates, resolve_candidates
from .checks import FewLabelsError, check_images
from .choice import spaced_timesteps
from .controls import randomised
from .distributed import gather
from .images import TensorImages
from .measure import Measurement
from .policy import SelectionPolicy, Tap
from .progress import Progress
from .result import SelectionResult
from .scores import build
from .table import Choice, choose

CONTROL_IMAGES = 64
FEWEST_IMAGES = 16  # that halving rules a candidate out by
FIRST_IMAGES = 128  # of a sweep that takes more images until its choice is stable
STABLE = 0.95  # probability at which it is


def sweep(extractor: Extractor, images: TensorImages | Any, policy: SelectionPolicy | None = None, *, noise: str = 'seeded',
          noise_seed: int = 0, draws: int = 1, progress: bool = False,
          log: Callable[[str], None] | None = None) -> SelectionResult:
    """Scores candidate timesteps and picks one in the middle of the best, or a few.

    Where torch.distributed runs, each rank measures its own share of the images and all end with the same result.

    Args:
        extractor (Extractor): Left with the mode, the taps and the weights that it had.
        images (TensorImages): Or whatever has its attributes and methods. The first ``policy.num_images`` are looked at.
        policy (SelectionPolicy | None): What is tried and how it is judged; None is the default.
        noise (str): 'seeded', 'random' or 'none', whichever the features will be used with. Noise that is the same for all images
            is a constant to a head, and noise that differs is not, so that the best timestep is another.
        noise_seed (int): Of the noise where it is 'seeded': that of the backbone.
        draws (int): Of the noise, over which the features are averaged: the backbone's.
        progress (bool): Whether the first rank shows a progress bar.
        log (Callable[[str], None] | None): Gets lines that say how many forward passes there will be and how long they take.

    Raises:
        ValueError: No images, images or labels that the score can learn nothing from, candidates outside the schedule or fewer
            than ``num_timesteps`` a gap apart, or a budget that is too small.
        FloatingPointError: A feature or a score is not finite.
    """
    policy = policy or SelectionPolicy()
    ts = resolve_candidates(policy.candidates, len(extractor.process))
    count = min(len(images), policy.most_images)
    if not count:
        raise ValueError('the sweep got no images: check that the dataset is not empty and that num_images is at least 1')
    score = build(policy.score, images, policy.task)
    spaced_timesteps(ts, [0] * len(ts), policy.num_timesteps, policy.gap)  # fails now, not after the work, where they do not fit
    if score.labelled and images.label_kind is None:
        raise ValueError(f'the score {score.name!r} needs labels, and these images have none: choose a score without, such as '
                         'half_consistency')
    # A probe needs many images of each class; what needs no labels shows its bias on few.
    few = count if score.labelled else min(count, CONTROL_IMAGES)
    if policy.num_images == 'auto':
        few = min(few, FIRST_IMAGES)
    start, failures, controls = time.perf_counter(), {}, {}
    with _prepared(extractor, policy.taps_for(extractor)):
        options: dict[str, Any] = dict(seed=policy.seed, noise=noise, noise_seed=noise_seed, draws=draws,
                                       forward_batch=policy.forward_batch)
        main = Measurement(extractor, [score], **options)
        each = main.per_image * len(ts)  # forward passes per image
        planned = each * (count + len(policy.controls) * few)
        bar = Progress(planned if policy.budget is None else min(planned, policy.budget),
                       f'{count} images, {main.per_image} of each, {len(ts)} timesteps, {len(policy.controls)} controls',
                       show=progress, log=log)
        main.advance = bar.advance
        budget = math.inf if policy.budget is None else policy.budget - len(policy.controls) * few * each
        with contextlib.closing(bar):
            found, forwards = _measured(main, images, count, ts, policy, budget, bar), sum(gather(main.forwards))
            for name in policy.controls:
                try:
                    controls[name], passes = _control(name, extractor, score, images, few, ts, policy, bar, options)
                    forwards += passes
                except Exception as error:  # costs the control, not the result; it is the same on all ranks
                    failures[name] = f'{type(error).__name__}: {error}'
        taps = tuple(extractor.taps)
    return SelectionResult(
        timestep=found.timesteps[0], timesteps=found.timesteps, tap=found.tap, candidates=found.candidates, taps=taps,
        steps=len(extractor.process), score=score.describe(), policy=policy.record(), num_images=found.num_images, noise=noise,
        noise_seed=noise_seed, draws=draws, forwards=forwards, seconds=time.perf_counter() - start, interval=found.interval,
        probability=found.probability, controls=controls, failures=failures, weights=weights_hash(extractor),
        pos_scale=extractor.family.pos_scale,
        versions=dict(mmaselect=__version__, torch=torch.__version__, diffusers=diffusers.__version__))


@contextlib.contextmanager
def _prepared(extractor: Extractor, taps: Sequence[Tap]) -> Iterator[None]:
    """The extractor in evaluation mode with these taps; afterwards with its own."""
    training, own = extractor.training, extractor.taps
    extractor.eval()
    try:
        if taps != own:
            extractor.set_taps(taps)
        yield
    finally:
        if taps != own:
            extractor.set_taps(own)
        extractor.train(training)


def _control(name, extractor, score, images, count, ts, policy, bar, options) -> tuple[int, int]:
    """What the score chooses where nothing is to be found, and the forward passes of that."""
    model = []
    _together(lambda: model.append(randomised(extractor, policy.seed) if name == 'random weights' else extractor))
    measurement = Measurement(model[0], [score], noise_images=name == 'noise', advance=bar.advance, **options)
    _extend(measurement, images, 0, count, ts, bar)
    chosen = choose(measurement, replace(policy, num_timesteps=1), resample=False).timesteps[0]
    return chosen, sum(gather(measurement.forwards))


def _measured(measurement: Measurement, images: TensorImages, count: int, ts: list[int], policy: SelectionPolicy, budget: float,
              bar: Progress) -> Choice:
    """The choice of a measurement that has grown as far as its ``count`` images and its budget go.

    Images are added in stages. With search='halving', a stage leaves out candidates that the stage before has ruled out.
    """
    grow = policy.num_images == 'auto'
    halving = policy.search == 'halving' and policy.num_timesteps == 1
    # A probe of fewer images per class is a poor judge.
    least = 20 * (images.num_classes or 0) if measurement.labelled and images.label_kind == 'image' else FEWEST_IMAGES
    stages = _stages(count, FIRST_IMAGES if grow else max(least, -(-count // 8)) if halving else count)
    each = len(ts) * measurement.per_image
    if stages[0] * each > budget or not grow and count * each > budget:
        needed = stages[0] if grow else count
        raise ValueError(f'a budget of {budget:.0f} forward passes besides the controls is less than the {needed * each} that '
                         f'{needed} images at {len(ts)} candidates take: raise budget, or lower num_images or candidates')
    found, too_few, start, kept = None, None, 0, ts
    for stop in stages:
        if grow and stop * each > budget:
            break
        begun, start = start, stop
        try:
            _extend(measurement, images, begun, stop, kept, bar)
        except FewLabelsError as error:  # the first images of a sample may be of one class
            too_few = error
            continue
        too_few = None
        found = choose(measurement, policy, before=found)
        if grow and found.stability >= STABLE:
            break
        if halving:
            kept = list(found.promising)
    if too_few is not None:
        raise too_few
    while budget < math.inf:
        affordable = (budget - sum(gather(measurement.forwards))) // (start * measurement.per_image)
        more = refined_candidates([c.timestep for c in found.candidates], *found.bounds)[:int(affordable)]
        if not more:
            break
        _extend(measurement, images, start, start, more, bar)
        found = choose(measurement, policy, before=found)
    return found


def _stages(count: int, first: int) -> list[int]:
    """Images after each stage: ``first``, then twice as many each time, up to ``count``.

    >>> _stages(200, 50), _stages(100, 128)
    ([50, 100, 200], [100])
    """
    stages = [min(count, first)]
    while stages[-1] < count:
        stages.append(min(count, 2 * stages[-1]))
    return stages


def _extend(measurement: Measurement, images: TensorImages, start: int, stop: int, ts: list[int], bar: Progress) -> None:
    """Measures the images from ``start`` to ``stop`` too, and these timesteps. What fails on one rank fails on all, which would
    wait for it in vain otherwise.

    Raises:
        ValueError: The first images, or their labels, are such that a score can learn nothing from them.
    """
    _together(lambda: measurement.add(images.batches(start, stop)))
    if stop > start and not measurement.noise_images:
        check_images(measurement, images, measurement.scores[0])
    bar.begin()
    _together(lambda: measurement.run(ts))


def _together(work: Callable[[], None]) -> None:
    """Does the work, and raises on every rank what was raised on one."""
    error = None
    try:
        work()
    except Exception as found:  # whatever it is, the others have to hear of it
        error = found
    for heard in gather(error):
        if heard is not None:
            raise heard
