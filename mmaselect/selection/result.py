"""What a sweep found, with every candidate's score and not just the winner."""
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from mmaselect.extract import Extractor
from mmaselect.extract.fingerprint import weights_hash
from mmaselect.files import atomic

from . import scores
from .choice import plateau_bounds
from .policy import SelectionPolicy, Tap

WITHOUT_EFFECT = {'controls', 'forward_batch', 'score_taps'}  # options that a choice does not depend on; taps are compared


def tap_name(tap: Tap) -> str:
    """(5, 'hidden') -> '5.hidden'."""
    return f'{tap[0]}.{tap[1]}'


@dataclass(frozen=True)
class Candidate:
    """One timestep: its noise level, log-SNR, how many images it was measured on, score per tap, and the score that the choice is
    made by: the mean over the taps, or the chosen tap's."""
    timestep: int
    sigma: float
    log_snr: float
    num_images: int
    tap_scores: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class SelectionResult:
    """The outcome of ``sweep``.

    Attributes:
        timestep (int): The choice, in [0, T), 0 the cleanest; the first where there are several.
        timesteps (tuple[int, ...]): All that were chosen, in the order of the choice.
        tap (tuple[int, str] | None): The tap that was chosen with it, where one was.
        candidates (tuple[Candidate, ...]): In ascending order of timestep.
        taps (tuple[tuple[int, str], ...]): What was scored.
        steps (int | None): T, timesteps of the schedule; None in older files.
        score (dict): Name and options of the score.
        policy (dict): The options of the ``SelectionPolicy``.
        num_images (int): What it was measured on.
        noise, noise_seed, draws (str, int, int): What was added to the latents; see ``sweep``.
        forwards (int): Images run through the transformer, over all ranks, controls included.
        seconds (float): Wall time of the sweep.
        interval (tuple[int, int] | None): The timesteps between which 90 % of the bootstrap's choices lie.
        probability (float | None): Share of the bootstrap's choices that are the choice.
        controls (dict[str, int]): What the same score chose where nothing was to be found: the 'noise' in place of the images, or
            the same architecture with 'random weights'.
        failures (dict[str, str]): The controls that failed, and why.
        weights (str): Hash of the transformer's weights.
        pos_scale (str | None): Of its positions on other grids than the training's; None where there is no choice, and in older
            files.
        versions (dict[str, str]): Of the packages that matter.
    """
    timestep: int
    timesteps: tuple[int, ...]
    tap: tuple[int, str] | None
    candidates: tuple[Candidate, ...]
    taps: tuple[tuple[int, str], ...]
    steps: int | None
    score: dict
    policy: dict
    num_images: int
    noise: str
    noise_seed: int
    draws: int
    forwards: int
    seconds: float
    interval: tuple[int, int] | None
    probability: float | None
    controls: dict
    failures: dict
    weights: str
    pos_scale: str | None
    versions: dict

    @property
    def plateau(self) -> float:
        """The share of the scores' range that the plateau may lose."""
        return self.policy['plateau']

    @property
    def chosen(self) -> Candidate:
        """The chosen candidate."""
        return next(c for c in self.candidates if c.timestep == self.timestep)

    @property
    def _curve(self):
        return [c.score for c in self.candidates]

    @property
    def edge(self) -> str | None:
        """'low' or 'high' where the score is highest at the low-noise or the high-noise end of several candidates, else None."""
        best = self._curve.index(max(self._curve))
        ends = {0: 'low', len(self.candidates) - 1: 'high'}
        return ends.get(best) if len(self.candidates) > 1 else None

    @property
    def plateau_ends(self) -> tuple[Candidate, Candidate]:
        """The first and the last candidate of the plateau that the choice is the centre of."""
        first, last = plateau_bounds(torch.tensor(self._curve, dtype=torch.float64), self.plateau)
        return self.candidates[first], self.candidates[last]

    @property
    def unsure(self) -> bool:
        """Whether the interval spans a quarter or more of the timesteps tried."""
        return self.interval is not None and self._spans(*self.interval, 4)

    @property
    def flat(self) -> bool:
        """Whether the plateau spans half or more of the timesteps tried: the score hardly tells them apart."""
        return self._spans(*(c.timestep for c in self.plateau_ends), 2)

    def _spans(self, low, high, part):
        tried = self.candidates[-1].timestep - self.candidates[0].timestep
        return tried > 0 and part * (high - low) >= tried

    @property
    def remarks(self) -> list[str]:
        """What a reader should know before trusting the choice, a sentence each."""
        said = []
        if self.edge:
            tried = self.candidates[0].timestep, self.candidates[-1].timestep + 1
            beyond = tried[0] > 0 if self.edge == 'low' else tried[1] != self.steps
            said.append(f'the score is highest at the edge of the candidates, the {self.edge}-noise end'
                        + ('; the optimum may lie beyond' if beyond else ''))
        if self.unsure:
            said.append('the choice is unsure: images drawn again would choose anything from t={} to t={}'.format(*self.interval))
        if self.flat:
            low, high = (c.timestep for c in self.plateau_ends)
            said.append(f'the optimum is flat: from t={low} to t={high} the scores stay within {self.plateau:.0%} of their range')
        low, high = self.interval or (self.timestep, self.timestep)
        alike = [f'{name}, t={t}' for name, t in self.controls.items() if t == self.timestep or low <= t <= high]
        if alike:
            said.append(f'a control would have chosen the same ({"; ".join(alike)}), so that the score is no evidence that the '
                        'images make it the best')
        said += [f'the control {name!r} failed: {why}' for name, why in self.failures.items()]
        return said

    def summary(self) -> str:
        """One line for a log. Sigma, score and resamples are those of the first timestep."""
        more = f' and then {", ".join(map(str, self.timesteps[1:]))}' if len(self.timesteps) > 1 else ''
        tap = '' if self.tap is None else f' and tap {tap_name(self.tap)}'
        sure = ''
        if self.interval is not None:
            sure = f'; 90 % of resamples within [{self.interval[0]}, {self.interval[1]}], {self.probability:.0%} the same'
        level = f'sigma {self.chosen.sigma:.3f}, log-SNR {self.chosen.log_snr:.2f}'
        return (f'selected timestep t={self.timestep}{more}{tap} ({level}) '
                f"by {self.score['type']} {self.chosen.score:.4f} over {len(self.candidates)} candidates and {self.num_images} "
                f'images{sure}; {self.forwards} forward passes, {self.seconds:.1f} s')

    def table(self) -> str:
        """A line per candidate, the choice marked, and with a plus what was chosen besides."""
        names = [tap_name(tap) for tap in self.taps]
        lines = ['       t   sigma  log-SNR  images     score' + ''.join(f'{n:>14}' for n in names)]
        for c in self.candidates:
            mark = '>' if c.timestep == self.timestep else '+' if c.timestep in self.timesteps else ' '
            lines.append(f'{mark} {c.timestep:6d}  {c.sigma:.4f}  {c.log_snr:7.2f}  {c.num_images:6d}  {c.score:8.4f}'
                         + ''.join(f'{s:14.4f}' for s in c.tap_scores))
        return '\n'.join(lines)

    def save(self, path: str | Path) -> None:
        """Writes JSON; the file appears only when it is whole. Infinite log-SNRs become null.

        Raises:
            OSError: The folder cannot be written.
        """
        data = asdict(self)
        for c in data['candidates']:
            if math.isinf(c['log_snr']):
                c['log_snr'] = None
        with atomic(path) as part:
            Path(part).write_text(json.dumps(data, indent=2, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path) -> 'SelectionResult':
        """Reads what ``save`` wrote.

        Raises:
            ValueError: The file is not one of ours.
        """
        try:
            data = json.loads(Path(path).read_text())
            data.setdefault('timesteps', [data['timestep']])  # files from when there was one
            # And from when each image had a draw of its own, and the highest score was taken.
            data = {**dict(noise='random', noise_seed=0, steps=None, draws=1, failures={}, pos_scale=None,
                           policy=dict(plateau=0.0) | {key: data[key] for key in ('plateau', 'seed') if key in data}), **data}
            for c in data['candidates']:
                c.setdefault('num_images', data['num_images'])
                if c['log_snr'] is None:
                    c['log_snr'] = float('inf') if c['sigma'] == 0 else -float('inf')
            candidates = tuple(Candidate(**{**c, 'tap_scores': tuple(c['tap_scores'])}) for c in data['candidates'])
            taps = tuple((block, name) for block, name in data['taps'])
            pairs = {name: data[name] and tuple(data[name]) for name in ('timesteps', 'tap', 'interval')}
            return cls(**{**{f.name: data[f.name] for f in fields(cls)}, **pairs, 'candidates': candidates, 'taps': taps})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path} is not a saved SelectionResult: {error!r}') from error

    def check(self, extractor: Extractor, policy: SelectionPolicy | None = None, *, noise: str, noise_seed: int,
              draws: int = 1) -> None:
        """Whether a sweep of this extractor with these options would have been this one.

        Args:
            extractor (Extractor): Whose timestep it is to be.
            policy (SelectionPolicy | None): How it would be chosen; None leaves taps and policy unchecked.
            noise, noise_seed, draws: As ``sweep``.

        Raises:
            ValueError: It would not; the message says what differs.
        """
        pairs = {'weights': (self.weights, weights_hash(extractor)), 'noise': (self.noise, noise), 'draws': (self.draws, draws)}
        sigmas = dict(enumerate(extractor.process.sigma.tolist()))
        pairs.update({f'noise level at t={c.timestep}': (round(c.sigma, 6), round(sigmas.get(c.timestep, math.nan), 6))
                      for c in self.candidates})
        if self.pos_scale is not None:
            pairs['pos_scale'] = self.pos_scale, extractor.family.pos_scale
        if noise == 'seeded':
            pairs['noise seed'] = self.noise_seed, noise_seed
        if policy is not None:
            asked = policy.record()
            pairs['taps'] = self.taps, tuple(policy.taps_for(extractor))
            pairs.update({name: (self.policy.get(name), asked[name]) for name in asked.keys() - WITHOUT_EFFECT})
            if self.score['type'] in scores.SCORES:  # an option that it lacks came later, and has another value there
                pairs['options of the score'] = self.score, scores.build(self.score).describe()
        wrong = [f'its {name}: {there!r} there, {here!r} here' for name, (there, here) in sorted(pairs.items()) if there != here]
        if wrong:
            raise ValueError(f'this result was made otherwise than it would be here: {"; ".join(wrong)}. Choose anew, without it')

    def figure(self):
        """The score over the timesteps with every chosen one and the interval of the first marked, as a matplotlib figure."""
        from matplotlib.figure import Figure
        figure = Figure(figsize=(7, 4), layout='constrained')
        axis = figure.subplots()
        timesteps = [c.timestep for c in self.candidates]
        for k, tap in enumerate(self.taps):
            if len(self.taps) > 1:
                axis.plot(timesteps, [c.tap_scores[k] for c in self.candidates], lw=1, alpha=0.6,
                          label=tap_name(tap) if len(self.taps) <= 8 else None)
        whole = tap_name(self.tap or self.taps[0]) if self.tap or len(self.taps) == 1 else 'mean'
        axis.plot(timesteps, self._curve, 'o-', color='black', ms=4, label=whole)
        if self.interval is not None:
            axis.axvspan(*self.interval, color='tab:red', alpha=0.12, lw=0, label='90 % of resamples')
        low, high = (timesteps.index(c.timestep) for c in self.plateau_ends)
        axis.hlines(min(self._curve[low:high + 1]), timesteps[low], timesteps[high], color='tab:red', lw=1, label='plateau')
        for rank, t in enumerate(self.timesteps):
            axis.axvline(t, color='tab:red', ls=':' if rank else '--', label=f't = {t}')
        axis.set(xlabel='timestep t (0 is the cleanest)', ylabel=self.score['type'],
                 title=f'{self.num_images} images, noise level at the choice: {self.chosen.sigma:.3f}')
        axis.legend(fontsize=8)
        return figure

    def plot(self, path):
        """Draws ``figure`` to a file, by its suffix (.png, .pdf, ...), and returns it."""
        figure = self.figure()
        with atomic(path) as part:
            figure.savefig(part, dpi=120)
        return figure
