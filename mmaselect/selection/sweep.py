"""The sweep: scores every candidate timestep on a few images, and takes one in the middle of the best."""
import copy
import hashlib
import math
import time

import diffusers
import torch
import torch.distributed as dist
from tqdm import tqdm

from mmaselect.version import __version__

from . import candidates as timesteps
from .confidence import bootstrap, confidence
from .images import gather, rank_and_size
from .measure import Measurement
from .result import Candidate, SelectionResult
from .scores import Score, build, mean_ratio

CONTROLS = ('noise', 'random weights')
CONTROL_IMAGES = 64
FIRST_IMAGES = 128  # of a sweep that takes more images until its choice is stable
STABLE = 0.95  # probability at which it is
PLATEAU = 0.2


def sweep(extractor, images, *, candidates=20, score='half_consistency', plateau=PLATEAU, num_timesteps=1, gap=100,
          choose_tap=False, grow=False, budget=None, controls=(), seed=0, noise='seeded', noise_seed=0, forward_batch=64,
          progress=False):
    """Scores every candidate timestep and picks one in the middle of the best, or a few.

    Where torch.distributed runs, each rank measures its own share of the images and all end with the same result.

    Args:
        extractor (Extractor): Left in the mode and with the weights it had.
        images (TensorImages): Or whatever has its attributes and methods.
        candidates (int | Sequence[int]): Timesteps, or how many to spread over the schedule.
        score (str | dict | Score): See ``scores``.
        plateau (float): The choice is the middle of the candidates around the best one that lose at most so large a share of what
            lies between the highest and the lowest score; see ``candidates.middle``. 0 takes the best. The default was chosen by
            regret against exhaustive searches (benchmarks/README.md).
        num_timesteps (int): How many to choose: after the first greedily the best that lie at least ``gap`` apart; see
            ``candidates.spread``. How sure the choice is, finer steps and controls are about the first.
        gap (int): In training timesteps. The default is what lies between DDPM-seg's 50, 150 and 250 (Baranchuk et al. 2022,
            arXiv:2112.03126).
        choose_tap (bool): Whether to choose one of the extractor's taps, that with the highest score at any timestep, and its
            timestep, in place of the timestep by the mean over the taps. Only for scores that mean the same for all taps.
        grow (bool): Whether to begin with 128 images and double them until 95 % of the bootstrap's choices are the choice or a
            neighbour of it.
        budget (int | None): Forward passes, images times timesteps times views. What images, candidates and controls leave of it
            goes into finer steps at the edges of the plateau and around the choice; None takes no finer steps.
        controls (Sequence[str]): 'noise' and 'random weights': what would the same score choose there?
        seed (int): Of augmentation and bootstrap, and of the noise where it is 'random'.
        noise (str): 'seeded', 'random' or 'none', whichever the features will be used with. Noise that is the same for all images
            is a constant to a head, and noise that differs is not, so that the best timestep is another.
        noise_seed (int): Of the noise where it is 'seeded': that of the backbone.
        forward_batch (int): At most so many latents per forward pass of the transformer; several candidates share one.
        progress (bool): Whether the first rank shows a progress bar.

    Returns:
        SelectionResult

    Raises:
        ValueError: No images, bad candidates, or fewer than ``num_timesteps`` a gap apart, an unknown score or control, a score
            that cannot do what is asked of it or needs labels and gets none, or a budget that is too small.
        FloatingPointError: A feature or a score is not finite.
    """
    ts = timesteps.resolve(candidates, len(extractor.process))
    if not len(images):
        raise ValueError('the sweep got no images: check that the dataset is not empty and that num_images is at least 1')
    score = build(score, images)
    check(score, choose_tap, grow, controls, num_timesteps, gap, plateau)
    timesteps.spread(ts, [0] * len(ts), num_timesteps, gap)  # fails now, not after the work, where they do not fit
    pick = dict(choose_tap=choose_tap, num_timesteps=num_timesteps, gap=gap, plateau=plateau)
    if score.labelled and images.label_kind is None:
        raise ValueError(f'the score {score.name!r} needs labels, and these images have none: choose a score without, such as '
                         'half_consistency')
    training, start = extractor.training, time.perf_counter()
    extractor.eval()
    try:
        with tqdm(desc='timestep sweep', unit=' forwards', total=0, disable=not progress or rank_and_size()[0] > 0) as bar:
            options = dict(seed=seed, noise=noise, noise_seed=noise_seed, forward_batch=forward_batch, advance=bar.update)
            main = Measurement(extractor, [score], **options)
            # A probe needs many images of each class; what needs no labels shows its bias on few.
            few = min(len(images), FIRST_IMAGES if grow else len(images), len(images) if score.labelled else CONTROL_IMAGES)
            left = math.inf if budget is None else budget - len(controls) * few * len(ts) * main.per_image
            table = _measure(main, images, ts, pick, grow, budget is not None, left, bar)
            found, forwards = {}, sum(gather(main.forwards))
            for name in controls:
                model = randomised(extractor, seed) if name == 'random weights' else extractor
                other = Measurement(model, [score], noise_images=name == 'noise', **options)
                _step(other, images, 0, few, ts, bar)
                found[name] = _choose(other, dict(pick, num_timesteps=1), sure=False).timesteps[0]
                forwards += sum(gather(other.forwards))
    finally:
        extractor.train(training)
    return SelectionResult(
        timestep=table.timesteps[0], timesteps=table.timesteps, tap=table.tap, candidates=table.candidates,
        taps=tuple(extractor.taps), score=score.describe(), plateau=plateau, num_images=table.num_images, seed=seed, noise=noise,
        noise_seed=noise_seed, forwards=forwards, seconds=time.perf_counter() - start, interval=table.interval,
        probability=table.probability, controls=found, weights=weights_hash(extractor),
        versions=dict(mmaselect=__version__, torch=torch.__version__, diffusers=diffusers.__version__))


def check(score, choose_tap, grow, controls, num_timesteps, gap, plateau):
    """Whether a policy can be carried out.

    Raises:
        ValueError: It cannot; the message says why.
    """
    if choose_tap and not score.comparable:
        raise ValueError(f'the score {score.name!r} is not on one scale for all taps, so that it cannot choose between them: '
                         'take half_consistency or ridge')
    if grow and type(score).terms is Score.terms:
        raise ValueError(f"the score {score.name!r} cannot say how stable its choice is: give a number of images, not 'auto'")
    if num_timesteps < 1 or gap < 1:
        raise ValueError(f'{num_timesteps} timesteps at least {gap} apart: both must be 1 or more')
    if not 0 <= plateau < 1:
        raise ValueError(f'plateau={plateau}: a share of what lies between the highest and the lowest score, in [0, 1)')
    if isinstance(controls, str) or set(controls) - set(CONTROLS):
        raise ValueError(f'controls are some of {CONTROLS}, not {controls!r}')


def _measure(measurement, images, ts, pick, grow, refine, left, bar):
    """The table of a measurement that has grown as far as its images and its budget go."""
    start, stop = 0, min(len(images), FIRST_IMAGES) if grow else len(images)
    each = len(ts) * measurement.per_image
    if stop * each > left:
        raise ValueError(f'a budget of {left:.0f} forward passes besides the controls is less than the {stop * each} that {stop} '
                         f'images at {len(ts)} candidates take: raise budget, or lower num_images or candidates')
    while True:
        _step(measurement, images, start, stop, ts, bar)
        table = _choose(measurement, pick)
        start, stop = stop, min(len(images), 2 * stop)
        if start == stop or table.near >= STABLE or stop * each > left:
            break
    while refine:
        affordable = (left - sum(gather(measurement.forwards))) // (start * measurement.per_image)
        finer = timesteps.finer([c.timestep for c in table.candidates], *table.places)[:affordable]
        if not finer:
            break
        _step(measurement, images, start, start, finer, bar)
        table = _choose(measurement, pick)
    return table


def _step(measurement, images, start, stop, ts, bar):
    """Measures the images from ``start`` to ``stop`` too, and these timesteps. What fails on one rank fails on all, which would
    wait for it in vain else."""
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


class _Table:
    """Scores of all candidates, the choice, and how sure it is."""

    def __init__(self, measurement, table, sure, *, choose_tap, num_timesteps, gap, plateau):
        extractor, score = measurement.extractor, measurement.scores[0]
        terms, values = [], {}
        for t, tap, rows, total in table:
            own = score.terms(rows, total)
            if own is not None:
                terms.append(own)
            values.setdefault(t, []).append(score.value(rows, total) if own is None
                                            else mean_ratio(own[0].sum(0), own[1].sum(0)).item())
            if not math.isfinite(values[t][-1]):
                raise FloatingPointError(f'the score {score.name!r} of {extractor.taps[tap]} at t={t} is {values[t][-1]}, not a '
                                         'finite number')
            self.num_images = len(rows)
        ts, scores = list(values), torch.tensor(list(values.values()), dtype=torch.float64)  # (T, taps)
        curve, self.tap = scores.mean(1), None
        if choose_tap:
            best = int(scores.amax(0).argmax())
            curve, self.tap = scores[:, best], extractor.taps[best]
        ranked = curve.tolist()
        ranked[timesteps.middle(curve, ts, plateau)] = math.inf  # comes before all others
        self.timesteps = timesteps.spread(ts, ranked, num_timesteps, gap)
        chosen = ts.index(self.timesteps[0])
        first, last = timesteps.edges(curve, plateau)
        self.places = int(first), chosen, int(last)
        process = extractor.process
        self.candidates = tuple(Candidate(t, process.sigma[t].item(), process.log_snr(t), tuple(values[t]), whole)
                                for t, whole in zip(ts, curve.tolist(), strict=True))
        self.interval = self.probability = None
        self.near = 0
        if terms and sure:
            resampled = bootstrap(terms, seed=measurement.seed).unflatten(1, (len(ts), -1))  # (draws, timesteps, taps)
            taps = resampled.amax(1).argmax(1)  # (draws,), the best of each
            curves = resampled[torch.arange(len(taps)), :, taps] if choose_tap else resampled.mean(2)  # (draws, timesteps)
            self.interval, self.probability, self.near = confidence(curves, ts, chosen, plateau)


def _choose(measurement, pick, sure=True):
    """The table, made by the first rank alone, so that all have the same to the last bit."""
    outcome = None
    table = measurement.gathered()
    if rank_and_size()[0] == 0:
        try:
            outcome = _Table(measurement, table, sure, **pick)
        except Exception as error:  # whatever it is, the others have to hear of it
            outcome = error
    for _ in table:  # every rank goes through all of it
        pass
    if dist.is_initialized():
        box = [outcome]
        dist.broadcast_object_list(box)
        outcome = box[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def randomised(extractor, seed):
    """A copy of the extractor whose transformer has the random weights that its class gives it."""
    model = extractor.family.model
    first = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = torch.nn.Module.to(type(model).from_config(model.config), first.device, first.dtype)  # diffusers' own warns
    # Everything but the transformer is shared: the VAE is large, and is not changed.
    shared = {id(part): part for part in (extractor.encoder, extractor.process)}
    return copy.deepcopy(extractor, {**shared, id(model): fresh}).eval()


def weights_hash(extractor):
    """A hash of the transformer's weights, by which a result can be told to be of this model."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(extractor.state_dict().items()):
        if not name.startswith('encoder.'):
            digest.update(name.encode())
            # Cloned, since numpy locks a storage, and FSDP could then not free the weights that it gathered.
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).clone().numpy().tobytes())
    return digest.hexdigest()
