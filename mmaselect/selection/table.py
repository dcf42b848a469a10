"""Scores of all candidates, and the choice that follows from them."""
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import choice
from .confidence import bootstrap, confidence
from .distributed import broadcast, rank_and_size
from .measure import Measurement
from .policy import SelectionPolicy, Tap
from .result import Candidate
from .scores import mean_ratio


@dataclass(frozen=True)
class Choice:
    """What a measurement says.

    Attributes:
        timesteps (tuple[int, ...]): The chosen ones, the first by the plateau.
        tap (Tap | None): Where one was chosen.
        candidates (tuple[Candidate, ...]): All scores.
        bounds (tuple[int, int, int]): Indices of the plateau's first candidate, of the choice, and of the plateau's last.
        num_images (int): On all ranks.
        interval, probability: See ``SelectionResult``.
        stability (float): Probability that a resample chooses the same or a neighbour; 0 where nothing was resampled.
    """
    timesteps: tuple[int, ...]
    tap: Tap | None
    candidates: tuple[Candidate, ...]
    bounds: tuple[int, int, int]
    num_images: int
    interval: tuple[int, int] | None = None
    probability: float | None = None
    stability: float = 0.0


def choose(measurement: Measurement, policy: SelectionPolicy, *, resample: bool = True) -> Choice:
    """The choice from what was measured, made by the first rank alone, so that all ranks have the same to the last bit.

    Raises:
        FloatingPointError: A score is not finite.
        ValueError: The score cannot be computed of these images.
    """
    outcome = None
    rows = measurement.gathered()
    if rank_and_size()[0] == 0:
        try:
            outcome = _choice(measurement, rows, policy, resample)
        except Exception as error:  # whatever it is, the others have to hear of it
            outcome = error
    for _ in rows:  # every rank goes through all of it
        pass
    outcome = broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _choice(measurement, gathered, policy, resample):
    extractor, score = measurement.extractor, measurement.scores[0]
    terms, values, count = [], {}, 0
    for t, tap, rows, total in gathered:
        own = score.terms(rows, total)
        if own is not None:
            terms.append(own)
        values.setdefault(t, []).append(score.value(rows, total) if own is None
                                        else mean_ratio(own[0].sum(0), own[1].sum(0)).item())
        if not math.isfinite(values[t][-1]):
            raise FloatingPointError(f'the score {score.name!r} of {extractor.taps[tap]} at t={t} is {values[t][-1]}, not a '
                                     'finite number')
        count = len(rows)
    ts, scores = list(values), torch.tensor(list(values.values()), dtype=torch.float64)  # (T, taps)
    curve, tap = scores.mean(1), None
    if policy.choose_tap:
        best = int(scores.amax(0).argmax())
        curve, tap = scores[:, best], extractor.taps[best]
    ranked = curve.tolist()
    ranked[choice.plateau_centre(curve, ts, policy.plateau)] = math.inf  # comes before all others
    timesteps = choice.spaced_timesteps(ts, ranked, policy.num_timesteps, policy.gap)
    chosen = ts.index(timesteps[0])
    first, last = choice.plateau_bounds(curve, policy.plateau)
    process = extractor.process
    candidates = tuple(Candidate(t, process.sigma[t].item(), process.log_snr(t), tuple(values[t]), whole)
                       for t, whole in zip(ts, curve.tolist(), strict=True))
    sure = ()
    if terms and resample:
        curves = _resampled(terms, len(ts), policy, measurement.seed)
        sure = confidence(curves, ts, chosen, policy.plateau)
    return Choice(timesteps, tap, candidates, (int(first), chosen, int(last)), count, *sure)


def _resampled(terms, timesteps: int, policy: SelectionPolicy, seed: int) -> Tensor:
    """Curves (resamples, timesteps) that resamples of the images choose by."""
    resampled = bootstrap(terms, seed=seed).unflatten(1, (timesteps, -1))  # (resamples, timesteps, taps)
    if not policy.choose_tap:
        return resampled.mean(2)
    best = resampled.amax(1).argmax(1)  # (resamples,) the best tap of each
    return resampled[torch.arange(len(best)), :, best]
