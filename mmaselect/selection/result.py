"""What a sweep found, with every candidate's score and not just the winner."""
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mmaselect.files import atomic


@dataclass(frozen=True)
class Candidate:
    """One timestep: its noise level, log-SNR, and score per tap and overall (their mean)."""
    timestep: int
    sigma: float
    log_snr: float
    tap_scores: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class SelectionResult:
    """The outcome of ``sweep``.

    Attributes:
        timestep (int): The choice, in [0, T), 0 the cleanest.
        candidates (tuple[Candidate, ...]): In ascending order of timestep.
        taps (tuple[tuple[int, str], ...]): What was scored.
        score (dict): Name and options of the score.
        num_images, seed (int): What it was measured on.
        forwards (int): Images run through the transformer, over all ranks.
        seconds (float): Wall time of the sweep.
        versions (dict[str, str]): Of the packages that matter.
    """
    timestep: int
    candidates: tuple[Candidate, ...]
    taps: tuple[tuple[int, str], ...]
    score: dict
    num_images: int
    seed: int
    forwards: int
    seconds: float
    versions: dict

    @property
    def best(self):
        """The chosen candidate."""
        return next(c for c in self.candidates if c.timestep == self.timestep)

    @property
    def at_edge(self):
        """Whether the choice is the first or last of several candidates: the optimum may lie beyond."""
        return len(self.candidates) > 1 and self.best in (self.candidates[0], self.candidates[-1])

    def summary(self):
        """One line for a log."""
        edge = ', at the edge of the candidates' if self.at_edge else ''
        return (f"selected timestep t={self.timestep} (sigma {self.best.sigma:.3f}, log-SNR {self.best.log_snr:.2f}) by "
                f"{self.score['type']} {self.best.score:.4f} over {len(self.candidates)} candidates and {self.num_images} images"
                f'{edge}; {self.forwards} forward passes, {self.seconds:.1f} s')

    def table(self):
        """A line per candidate, the choice marked."""
        names = [f'{block}.{name}' for block, name in self.taps]
        lines = ['       t   sigma  log-SNR     score' + ''.join(f'{n:>14}' for n in names)]
        for c in self.candidates:
            mark = '>' if c.timestep == self.timestep else ' '
            lines.append(f'{mark} {c.timestep:6d}  {c.sigma:.4f}  {c.log_snr:7.2f}  {c.score:8.4f}'
                         + ''.join(f'{s:14.4f}' for s in c.tap_scores))
        return '\n'.join(lines)

    def save(self, path):
        """Writes JSON; the file appears only when it is whole. Infinite log-SNRs become null.

        Raises:
            OSError: The folder cannot be written.
        """
        data = asdict(self)
        for c in data['candidates']:
            if abs(c['log_snr']) == float('inf'):
                c['log_snr'] = None
        with atomic(path) as part:
            Path(part).write_text(json.dumps(data, indent=2, allow_nan=False))

    @classmethod
    def load(cls, path):
        """Reads what ``save`` wrote.

        Raises:
            ValueError: The file is not one of ours.
        """
        try:
            data = json.loads(Path(path).read_text())
            for c in data['candidates']:
                if c['log_snr'] is None:
                    c['log_snr'] = float('inf') if c['sigma'] == 0 else -float('inf')
            candidates = tuple(Candidate(**{**c, 'tap_scores': tuple(c['tap_scores'])}) for c in data['candidates'])
            taps = tuple((block, name) for block, name in data['taps'])
            return cls(**{**{f.name: data[f.name] for f in fields(cls)}, 'candidates': candidates, 'taps': taps})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} is not a saved SelectionResult: {error!r}') from error

    def figure(self):
        """The score over the timesteps with the choice marked, as a matplotlib figure."""
        from matplotlib.figure import Figure
        figure = Figure(figsize=(7, 4), layout='constrained')
        axis = figure.subplots()
        timesteps = [c.timestep for c in self.candidates]
        for k, (block, name) in enumerate(self.taps):
            if len(self.taps) > 1:
                axis.plot(timesteps, [c.tap_scores[k] for c in self.candidates], lw=1, alpha=0.6, label=f'block {block} {name}')
        axis.plot(timesteps, [c.score for c in self.candidates], 'o-', color='black', ms=4,
                  label='mean' if len(self.taps) > 1 else f'block {self.taps[0][0]} {self.taps[0][1]}')
        axis.axvline(self.timestep, color='tab:red', ls='--', label=f't = {self.timestep}')
        axis.set(xlabel='timestep t (0 is the cleanest)', ylabel=self.score['type'],
                 title=f'{self.num_images} images, noise level at the choice: {self.best.sigma:.3f}')
        axis.legend(fontsize=8)
        return figure

    def plot(self, path):
        """Draws ``figure`` to a file, by its suffix (.png, .pdf, ...)."""
        figure = self.figure()
        with atomic(path) as part:
            figure.savefig(part, dpi=120)
