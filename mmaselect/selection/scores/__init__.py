"""How good are these features? Scores of a candidate timestep, higher is better, chosen by name.

A score is pure functions. ``observe`` turns the maps of a batch into a few numbers per image, its rows; rows of all batches and
ranks are put together in the order of the images, so that neither batch size nor number of ranks changes the result; ``value``
turns them into the score. Most scores are a mean of ratios of sums over images: these say only what the sums are of
(``terms``), and get their value and its bootstrap from that.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

SCORES: dict[str, type] = {}
AUTO = ('auto', 'probe')  # names that ``build`` finds a score for
PER_CLASS = 50  # images that a probe needs (benchmarks/README.md)


def register(name: str) -> Callable[[type], type]:
    """Class decorator that makes a score known by ``name``; see ``Score`` for what it must have."""
    def add(cls):
        known = SCORES.get(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):  # a notebook's cell may run twice
            raise ValueError(f'a score named {name!r} is already registered: {known}')
        cls.name = name
        SCORES[name] = cls
        return cls
    return add


def build(score: Any, images: Any = None, task: str = 'auto') -> 'Score':
    """A score from its name, from ``dict(type=name, **options)``, or itself.

    Args:
        score (str | dict | Score): 'auto' is the recommended score without labels: ``half_consistency`` where the task is one
            of whole images, ``cell_consistency`` where it is dense. 'probe' is the recommended one with labels, whose measure
            is the task's: the accuracy of the closed-form probe, or its mean IoU; where labels lack or images have fewer than 50
            per class, it is 'auto'.
        images (TensorImages | None): Asked for their labels; see there.
        task (str): 'image', 'dense', or 'auto': dense where pixels have labels.

    Raises:
        ValueError: Unknown name or options.
    """
    if isinstance(score, Score):
        if not hasattr(score, 'name'):
            raise ValueError(f'{type(score).__name__} has no name, by which results tell scores apart: decorate it with '
                             '@scores.register(NAME)')
        return score
    options = dict(type=score) if isinstance(score, str) else dict(score) if isinstance(score, Mapping) else {}
    name = options.pop('type', None)
    if not isinstance(name, str):
        raise ValueError(f'unknown score {score!r}: give a name, or dict(type=name) with its options')
    if name in AUTO:
        if options:
            raise ValueError(f'score {name!r} takes no options, not {sorted(options)}: name the score that they are of')
        kind = None if images is None else images.label_kind
        if name == 'auto' or not _enough(kind, images):
            name = 'cell_consistency' if task == 'dense' or task == 'auto' and kind == 'pixel' else 'half_consistency'
        else:
            name, options = 'ridge', dict(ridge=0.1, measure='accuracy')
    if name not in SCORES:
        raise ValueError(f'unknown score {name!r}: choose one of {", ".join(AUTO)}, {", ".join(SCORES)}, or register your own')
    try:
        return SCORES[name](**options)
    except TypeError as error:
        raise ValueError(f'score {name!r}: {error}') from error


def _enough(kind, images):
    """Whether there are labels enough for a probe."""
    return kind == 'pixel' or kind == 'image' and bool(images.num_classes) and len(images) >= PER_CLASS * images.num_classes


def mean_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Mean over the last axis of numerator / denominator, those with nothing to share left out; 0 where none has."""
    counts = denominator > 0
    ratio = numerator / denominator.where(counts, denominator.new_ones(()))
    return ratio.where(counts, ratio.new_zeros(())).sum(-1) / counts.sum(-1).clamp_min(1)


class Score:
    """What a score must have: ``observe``, and either ``terms`` or ``value``.

    Attributes:
        name (str): Set by ``register``.
        views (int): Maps that it compares per image: 1, or 2 with independent noise.
        augmented (bool): Whether the views are random augmentations of the image (see ``views.py``) or the image itself.
        aligned (bool): Whether the maps of augmented views are laid back on the image before they are observed.
        labelled (bool): Whether it needs labels.
        comparable (bool): Whether its values for one tap can be held against those for another.
    """
    name: ClassVar[str]
    views: ClassVar[int] = 1
    augmented: ClassVar[bool] = False
    aligned: ClassVar[bool] = False
    labelled: ClassVar[bool] = False
    comparable: ClassVar[bool] = False

    def observe(self, maps: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """``views`` maps, each (B, D, h, w), and the labels (B,) or (B, h, w), -1 where there is none -> rows (B, ...)."""
        raise NotImplementedError

    def total(self, maps: Sequence[Tensor]) -> Tensor | None:
        """What is added up over images, besides the rows: a tensor, or None where a score needs no such thing."""
        return None

    def terms(self, rows: Tensor, total: Any) -> tuple[Tensor, Tensor] | None:
        """Rows of all images (N, ...), float64 -> numerators and denominators (N, k) of the ratios, or None where the score
        is not of this form; it then has no confidence interval."""
        return None

    def value(self, rows: Tensor, total: Any = None) -> float:
        """Rows of all images (N, ...), float64, and the sum of ``total`` over all of them -> float."""
        terms = self.terms(rows, total)
        if terms is None:
            raise NotImplementedError(f'{type(self).__name__} needs terms or value')
        return mean_ratio(terms[0].sum(0), terms[1].sum(0)).item()

    def describe(self) -> dict[str, Any]:
        """Name and options, such that ``build`` makes the same score of it."""
        return dict(type=self.name, **vars(self))


from . import consistency, frequency, half_consistency, probe, rank  # noqa: E402, F401, they register themselves
