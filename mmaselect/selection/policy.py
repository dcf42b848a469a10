"""Every option of a sweep in one object: the neck, the notebook and the tools take it, and ``sweep`` carries it out."""
import difflib
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mmaselect.extract import TAPS, Extractor, resolve
from mmaselect.extract.numbers import is_count

from . import scores

CONTROLS = ('noise', 'random weights')
MOST_IMAGES = 2048  # of a sweep that takes more images until its choice is stable

Tap = tuple[int, str]


@dataclass(frozen=True)
class SelectionPolicy:
    """How the timestep is chosen. Checked once, here. The defaults are the recommended ones.

    Args:
        score (str | dict | Score): How features are judged: 'auto' needs no labels, 'probe' uses them; see ``scores.build``.
        task (str): What the features are for, which 'auto' and 'probe' ask: 'image', 'dense', or 'auto' where the labels tell.
        score_taps (str | Sequence[tuple[int, str]] | None): The features that are judged, as (block, name). 'auto' takes the
            values of four blocks, whose mean judges better than the head's own taps (benchmarks/README.md). With ``choose_tap``
            it takes all features of the four blocks and of those that papers found best. None takes what the extractor reads.
        choose_tap (bool): Whether one of ``score_taps`` is chosen together with the timestep, by the highest score. Otherwise the
            mean over ``score_taps`` chooses the timestep. Needs a score that means the same for all taps.
        num_timesteps (int): How many timesteps to choose: after the first the best that lie ``gap`` or more apart.
        gap (int): Between two chosen timesteps, in training timesteps. The default is what lies between DDPM-seg's 50, 150 and
            250 (Baranchuk et al. 2022, arXiv:2112.03126).
        candidates (int | Sequence[int]): Timesteps to try, 0 the cleanest, or how many to spread over the schedule.
        search (str): 'grid' measures all candidates on all images. 'halving' begins with an eighth of the images, and doubles
            them for the candidates that may still be on the plateau (successive halving, Jamieson and Talwalkar 2016,
            arXiv:1502.07943). Where several timesteps are chosen it is 'grid'.
        plateau (float): The choice is the centre of the run of candidates around the best one that lose at most this share of the
            scores' range; see ``choice.plateau_centre``. 0 takes the best.
        num_images (int | str): At most so many images are looked at. 'auto' begins with 128 and doubles them until 95 % of
            the bootstrap's choices are the choice or a neighbour of it.
        image_size (int | tuple[int, int] | None): Height and width in pixels that images of a dataset are cut to. None is the
            crop size of the data_preprocessor, or no cut where it has none.
        budget (int | None): Forward passes: images times timesteps times views. What the candidates and controls leave of it goes
            into finer steps at the plateau's bounds and around the choice. None takes no finer steps.
        controls (Sequence[str]): What the same score would choose where nothing is to be found: of 'noise' in place of the
            images, of a model of 'random weights'.
        forward_batch (int): At most so many latents per forward pass of the transformer; several candidates share one.
        seed (int): Of the choice of images, of augmentation and bootstrap, and of the noise where it is 'random'.

    Raises:
        ValueError: An option is wrong; the message says which and why.
    """
    score: Any = 'auto'
    task: str = 'auto'
    score_taps: str | tuple[Tap, ...] | None = 'auto'
    choose_tap: bool = False
    num_timesteps: int = 1
    gap: int = 100
    candidates: int | tuple[int, ...] = 20
    search: str = 'halving'
    plateau: float = 0.05
    num_images: int | str = 256
    image_size: int | tuple[int, int] | None = None
    budget: int | None = None
    controls: tuple[str, ...] = CONTROLS
    forward_batch: int = 64
    seed: int = 0

    def __post_init__(self):
        for name in ('score_taps', 'candidates', 'image_size', 'controls'):  # configs and JSON have lists
            object.__setattr__(self, name, _as_tuples(getattr(self, name)))
        if isinstance(self.score, Mapping):
            object.__setattr__(self, 'score', dict(self.score))  # of a ConfigDict
        score = scores.build(self.score)
        if self.task not in ('auto', 'image', 'dense'):
            raise ValueError(f"task={self.task!r}: 'image', 'dense', or 'auto', where the labels tell")
        if isinstance(self.score_taps, str) and self.score_taps != 'auto':
            raise ValueError(f"score_taps={self.score_taps!r}: 'auto', a list of (block, name), or None for those that are read")
        if self.choose_tap and not score.comparable:
            raise ValueError(f'the score {score.name!r} is not on one scale for all taps, so that it cannot choose between them: '
                             'take half_consistency or ridge')
        for name in ('num_timesteps', 'gap', 'forward_batch', 'budget', 'num_images', 'image_size'):
            self._check_whole(name)
        if type(self.seed) is not int:
            raise ValueError(f'seed={self.seed!r}: an integer')
        if self.num_images == 'auto' and type(score).terms is scores.Score.terms:
            raise ValueError(f"the score {score.name!r} cannot say how stable its choice is: give a number of images, not 'auto'")
        if self.search not in ('grid', 'halving'):
            raise ValueError(f"search={self.search!r}: 'grid' or 'halving'")
        if not isinstance(self.plateau, (int, float)) or not 0 <= self.plateau < 1:
            raise ValueError(f'plateau={self.plateau!r}: a share of the range of the scores, in [0, 1)')
        if not isinstance(self.controls, tuple) or set(self.controls) - set(CONTROLS):
            raise ValueError(f'controls are some of {CONTROLS}, not {self.controls!r}')

    @classmethod
    def of(cls, options: 'SelectionPolicy | Mapping[str, Any] | None') -> 'SelectionPolicy':
        """A policy from a config's ``selection=dict(...)``; None takes the defaults, and a policy is given back.

        Raises:
            ValueError: An option does not exist, or is wrong.
        """
        if isinstance(options, SelectionPolicy):
            return options
        names = [field.name for field in fields(cls)]
        for name in options or {}:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1, 0.5)
                raise ValueError(f'selection has no option {name!r}: ' + (f'did you mean {near[0]!r}? ' if near else '')
                                 + f'There are {", ".join(names)}')
        return cls(**(options or {}))

    def _check_whole(self, name):
        """Raises ValueError where an option is no integer from 1 on, nor what else it may be."""
        value = getattr(self, name)
        others = dict(budget=(None,), num_images=('auto',), image_size=(None,)).get(name, ())
        numbers = value if name == 'image_size' and isinstance(value, tuple) and len(value) == 2 else (value,)
        if value not in others and not all(map(is_count, numbers)):
            besides = dict(budget=', or None', num_images=", or 'auto'", image_size=', (height, width), or None')
            raise ValueError(f'{name}={value!r}: an integer, 1 or more{besides.get(name, "")}')

    @property
    def most_images(self) -> int:
        """How many images a sample for the sweep needs."""
        return MOST_IMAGES if isinstance(self.num_images, str) else self.num_images

    def taps_for(self, extractor: Extractor) -> tuple[Tap, ...]:
        """The taps that scores judge with an extractor."""
        if isinstance(self.score_taps, str):  # 'auto', the only word
            return upper_taps(extractor.family, tuple(TAPS) if self.choose_tap else ('value',))
        return extractor.taps if self.score_taps is None else resolve(self.score_taps, extractor.family.depth)

    def record(self) -> dict[str, Any]:
        """The options as JSON has them."""
        found = {name: _as_lists(value) for name, value in asdict(self).items()}
        return {**found, 'score': self.score.describe() if isinstance(self.score, scores.Score) else found['score']}


def upper_taps(family: Any, names: tuple[str, ...]) -> tuple[Tap, ...]:
    """Taps of four blocks from the middle of a transformer to near its end, where published probes of DiT found the best.

    Where several names are asked for, the blocks that papers found best in this model are among them.
    """
    blocks = {round((family.depth - 1) * part) for part in (0.4, 0.55, 0.7, 0.85)}
    if len(names) > 1:
        blocks |= set(family.probed.get(family.depth, ()))
    return tuple((block, name) for block in sorted(blocks) for name in names if family.has((block, name)))


def _as_tuples(value):
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)  # NumPy's, which JSON does not take
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple, range)) else value


def _as_lists(value):
    return list(map(_as_lists, value)) if isinstance(value, (list, tuple)) else value
