"""Scores of all candidates, and the choice that follows from them."""
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import choice
from .confidence import bootstrap, confidence
from .distributed import broadcast, gather, rank_and_size
from .measure import Measurement
from .policy import SelectionPolicy, Tap
from .result import Candidate
from .scores import mean_ratio

LIKELY = 0.05  # share of resamples in which a candidate has to lie on the plateau to be measured on


@dataclass(frozen=True)
class Choice:
    """What a measurement says.

    Attributes:
        timesteps (tuple[int, ...]): The chosen ones, the first by the plateau.
        tap (Tap | None): Where one was chosen.
        candidates (tuple[Candidate, ...]): All scores.
        bounds (tuple[int, int, int]): Indices of the plateau's first candidate, of the choice, and of the plateau's last.
        num_images (int): On all ranks.
        promising (tuple[int, ...]): Timesteps that more images may still find to be on the plateau, and their neighbours.
        interval, probability: See ``SelectionResult``.
        stability (float): Probability that a resample chooses the same or a neighbour; 0 where nothing was resampled.
    """
    timesteps: tuple[int, ...]
    tap: Tap | None
    candidates: tuple[Candidate, ...]
    bounds: tuple[int, int, int]
    num_images: int
    promising: tuple[int, ...]
    interval: tuple[int, int] | None = None
    probability: float | None = None
    stability: float = 0.0


def choose(measurement: Measurement, policy: SelectionPolicy, *, before: Choice | None = None, resample: bool = True) -> Choice:
    """The choice from what was measured, made by the first rank alone, so that all ranks have the same to the last bit.

    Args:
        measurement (Measurement): All of its timesteps are candidates.
        policy (SelectionPolicy): How to choose.
        before (Choice | None): Of the stage before. Candidates that were not measured on all images since have its scores,
            shifted by what the others have risen, since a score depends on the number of images.
        resample (bool): Whether to say how sure the choice is.

    Raises:
        FloatingPointError: A score is not finite.
        ValueError: The score cannot be computed of these images.
    """
    outcome, rows = None, measurement.gathered()
    count = sum(gather(sum(len(batch.indices) for batch in measurement.batches)))
    if rank_and_size()[0] == 0:
        try:
            outcome = _choice(measurement, rows, count, policy, before, resample)
        except Exception as error:  # whatever it is, the others have to hear of it
            outcome = error
    for _ in rows:  # every rank goes through all of it
        pass
    outcome = broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _choice(measurement, gathered, count, policy, before, resample):
    extractor, score = measurement.extractor, measurement.scores[0]
    terms, values, images = [], {}, {}
    for t, tap, rows, total in gathered:
        images[t] = len(rows)
        if len(rows) < count:
            continue
        own = score.terms(rows, total)
        if own is not None:
            terms.append(own)
        values.setdefault(t, []).append(score.value(rows, total) if own is None
                                        else mean_ratio(own[0].sum(0), own[1].sum(0)).item())
        if not math.isfinite(values[t][-1]):
            raise FloatingPointError(f'the score {score.name!r} of {extractor.taps[tap]} at t={t} is {values[t][-1]}, not a '
                                     'finite number')
    measured, earlier = list(values), {} if before is None else {c.timestep: c.tap_scores for c in before.candidates}
    shared = [t for t in measured if t in earlier]
    for t in images.keys() - values.keys():
        rise = torch.tensor([values[k] for k in shared]).sub(torch.tensor([earlier[k] for k in shared])).mean(0)  # (taps,)
        values[t] = (torch.tensor(earlier[t]) + rise).tolist()
    ts = sorted(values)
    scores = torch.tensor([values[t] for t in ts], dtype=torch.float64)  # (T, taps)
    curve, tap = scores.mean(1), None
    if policy.choose_tap:
        best = int(scores.amax(0).argmax())
        curve, tap = scores[:, best], extractor.taps[best]
    ranked = curve.tolist()
    ranked[choice.plateau_centre(curve, ts, policy.plateau)] = math.inf  # comes before all others
    timesteps = choice.spaced_timesteps(ts, ranked, policy.num_timesteps, policy.gap)
    chosen, process = ts.index(timesteps[0]), extractor.process
    first, last = map(int, choice.plateau_bounds(curve, policy.plateau))
    candidates = tuple(Candidate(t, process.sigma[t].item(), process.log_snr(t), images[t], tuple(values[t]), whole)
                       for t, whole in zip(ts, curve.tolist(), strict=True))
    curves, sure = curve[None], ()
    if terms and resample:
        curves = _resampled(terms, scores, [ts.index(t) for t in measured], policy, measurement.seed)
        sure = confidence(curves, ts, chosen, policy.plateau)
    # Where nothing tells how sure the scores are, a wider plateau has to do.
    promising = _promising(curves, policy.plateau if sure else min(0.9, 2 * policy.plateau + 0.1))
    return Choice(timesteps, tap, candidates, (first, chosen, last), count,
                  tuple(ts[k] for k in promising if ts[k] in measured), *sure)


def _resampled(terms, scores: Tensor, measured: list[int], policy: SelectionPolicy, seed: int) -> Tensor:
    """Curves (resamples, timesteps) that resamples of the images choose by; the scores of what was not measured stay."""
    own = bootstrap(terms, seed=seed).unflatten(1, (len(measured), -1))  # (resamples, measured, taps)
    resampled = scores.repeat(len(own), 1, 1)  # (resamples, timesteps, taps)
    resampled[:, measured] = own
    if not policy.choose_tap:
        return resampled.mean(2)
    best = resampled.amax(1).argmax(1)  # (resamples,) the best tap of each
    return resampled[torch.arange(len(best)), :, best]


def _promising(curves: Tensor, plateau: float) -> range:
    """Indices of the candidates that lie on the plateau in some of the curves (resamples, timesteps), and of their neighbours."""
    indices = torch.arange(curves.shape[1])
    first, last = choice.plateau_bounds(curves, plateau)
    likely = ((indices >= first[:, None]) & (indices <= last[:, None])).double().mean(0) >= LIKELY
    found = indices[likely].tolist()
    return range(max(0, found[0] - 1), min(curves.shape[1], found[-1] + 2))
