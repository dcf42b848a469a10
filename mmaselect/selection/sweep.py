"""The sweep: scores every candidate timestep on a few images, and takes the best."""
import copy
import hashlib
import importlib.metadata
import math
import time

import torch
from tqdm import tqdm

from . import candidates as timesteps
from .confidence import bootstrap, confidence
from .images import rank_and_size
from .measure import Measurement
from .result import Candidate, SelectionResult
from .scores import Score, build, mean_ratio

CONTROL_IMAGES = 64
FIRST_IMAGES = 128  # of a sweep that takes more images until its choice is stable
STABLE = 0.95  # probability at which it is


def sweep(extractor, images, *, candidates=20, score='view_consistency', choose_tap=False, grow=False, budget=None, controls=(),
          seed=0, forward_batch=64, progress=False):
    """Scores every candidate timestep and picks the best.

    Where torch.distributed runs, each rank measures its own share of the images and all end with the same result.

    Args:
        extractor (FeatureExtractor): Left in the mode and with the weights it had.
        images (TensorImages): Or whatever has its attributes and method.
        candidates (int | Sequence[int]): Timesteps, or how many to spread over the schedule.
        score (str | dict | Score): See ``scores``.
        choose_tap (bool): Whether to choose one of the extractor's taps together with the timestep, in place of the timestep that
            is best for all taps on average.
        grow (bool): Whether to begin with 128 images and double them until 95 % of the bootstrap's choices are the choice or a
            neighbour of it.
        budget (int | None): Forward passes, images times candidates times views. What the candidates leave of it goes into finer
            steps around the best; None takes no finer steps.
        controls (Sequence[str]): 'noise' and 'random weights': what would the same score choose there?
        seed (int): Of noise, augmentation and bootstrap.
        forward_batch (int): Latents per forward pass of the transformer; several candidates share one.
        progress (bool): Whether the first rank shows a progress bar.

    Returns:
        SelectionResult

    Raises:
        ValueError: No images, bad candidates, an unknown score or control, or a score that needs labels and gets none.
        FloatingPointError: A feature or a score is not finite.
    """
    score = build(score, images.labelled)
    if score.labelled and not images.labelled:
        raise ValueError(f'the score {score.name!r} needs labels, and these images have none: choose a score without, such as '
                         'view_consistency')
    if grow and type(score).terms is Score.terms:
        raise ValueError(f'the score {score.name!r} cannot say how stable its choice is: give a number of images, not auto')
    if set(controls) - {'noise', 'random weights'}:
        raise ValueError(f"controls are 'noise' and 'random weights', not {sorted(controls)}")
    ts = timesteps.resolve(candidates, len(extractor.process))
    if not len(images):
        raise ValueError('the sweep got no images: check that the dataset is not empty and that num_images is at least 1')
    training, start = extractor.training, time.perf_counter()
    extractor.eval()
    try:
        with tqdm(desc='timestep sweep', unit=' forwards', disable=not progress or rank_and_size()[0] > 0) as bar:
            main = Measurement(extractor, [score], seed=seed, forward_batch=forward_batch, advance=bar.update)
            table = _measure(main, images, ts, choose_tap, grow, budget, bar)
            found, forwards = {}, main.all_forwards()
            for name in controls:
                model = _randomised(extractor, seed) if name == 'random weights' else extractor
                other = Measurement(model, [score], seed=seed, forward_batch=forward_batch, noise_images=name == 'noise',
                                    advance=bar.update)
                _expect(bar, min(len(images), CONTROL_IMAGES) * len(ts) * other.per_image)
                other.add(images.batches(0, CONTROL_IMAGES))
                other.run(ts)
                found[name] = _Table(other, choose_tap).timestep
                forwards += other.all_forwards()
    finally:
        extractor.train(training)
    return SelectionResult(
        timestep=table.timestep, tap=table.tap, candidates=table.candidates, taps=tuple(extractor.taps), score=score.describe(),
        num_images=table.num_images, seed=seed, forwards=forwards, seconds=time.perf_counter() - start, interval=table.interval,
        probability=table.probability, controls=found, weights=_hash(extractor),
        versions={name: importlib.metadata.version(name) for name in ('torch', 'diffusers')})


def _measure(measurement, images, ts, choose_tap, grow, budget, bar):
    """The table of a measurement that has grown as far as its images and its budget go."""
    start, stop, measured = 0, FIRST_IMAGES if grow else len(images), list(ts)
    while True:
        stop = min(stop, len(images))
        _expect(bar, (stop - start) * len(measured) * measurement.per_image)
        measurement.add(images.batches(start, stop))
        measurement.run(measured)
        table = _Table(measurement, choose_tap)
        if stop == len(images) or table.near is None or table.near >= STABLE:
            break
        start, stop = stop, 2 * stop
    while budget is not None:
        finer = timesteps.between(measured, table.timestep)
        cost = len(finer) * stop * measurement.per_image
        if not finer or measurement.all_forwards() + cost > budget:
            break
        _expect(bar, cost)
        measured = sorted({*measured, *finer})
        measurement.run(measured)
        table = _Table(measurement, choose_tap)
    return table


class _Table:
    """Scores of all candidates of a measurement, the choice, and how sure it is."""

    def __init__(self, measurement, choose_tap):
        extractor, score = measurement.extractor, measurement.scores[0]
        rows, totals = measurement.gathered()
        ts, terms, values = list(rows), [], []
        for t, taps in rows.items():
            own = [score.terms(of_tap, totals.get((t, tap))) for tap, of_tap in enumerate(taps)]
            if None in own:
                values.append([score.value(of_tap, totals.get((t, tap))) for tap, of_tap in enumerate(taps)])
            else:
                terms += own
                values.append([mean_ratio(above.sum(0), below.sum(0)).item() for above, below in own])
            if not all(map(math.isfinite, values[-1])):
                raise FloatingPointError(f'the score {score.name!r} at t={t} is {values[-1]}, not a finite number')
        overall = [max(own) if choose_tap else sum(own) / len(own) for own in values]
        best = overall.index(max(overall))  # the first, that is the cleanest, where several are equal
        self.timestep = ts[best]
        self.tap = extractor.taps[values[best].index(overall[best])] if choose_tap else None
        self.num_images = len(next(iter(rows.values()))[0])
        self.candidates = tuple(Candidate(t, extractor.process.sigma[t].item(), extractor.process.log_snr(t), tuple(own), whole)
                                for t, own, whole in zip(ts, values, overall, strict=True))
        self.interval = self.probability = self.near = None
        if terms:
            resampled = bootstrap(terms, seed=measurement.seed).unflatten(1, (len(ts), -1))  # (draws, timesteps, taps)
            curves = resampled.amax(2) if choose_tap else resampled.mean(2)  # (draws, timesteps)
            self.interval, self.probability, self.near = confidence(curves, ts, best)


def _expect(bar, forwards):
    bar.total = (bar.total or 0) + math.ceil(forwards / rank_and_size()[1])
    bar.refresh()


def _randomised(extractor, seed):
    """A copy of the extractor whose transformer has the random weights that its class gives it."""
    model = extractor.family.model
    first = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = torch.nn.Module.to(type(model).from_config(model.config), first.device, first.dtype)  # diffusers' own warns
    # Everything but the transformer is shared: the VAE is large, and is not changed.
    shared = {id(part): part for part in (extractor.encoder, extractor.process)}
    return copy.deepcopy(extractor, {**shared, id(model): fresh}).eval()


def _hash(extractor):
    """A hash of the transformer's weights, so that a choice can be told to be of this model."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(extractor.state_dict().items()):
        if not name.startswith('encoder.'):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
