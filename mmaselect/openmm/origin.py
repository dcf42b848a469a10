"""Where the weights of a DiTBackbone come from."""
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from mmaselect.extract import Extractor

from .frozen import Reference


class Shared:
    """Holds a module so that it is no part of the module that has this, and that copies of that one share it."""

    def __init__(self, value):
        self.value = value

    def __deepcopy__(self, memo):
        return self


class Origin:
    """Makes a backbone's extractor, and its whole DiT anew where that was folded and let go.

    Args:
        pretrained (str | None): As of ``DiTBackbone``, likewise the next two.
        arch (dict | None): In place of ``pretrained``.
        pos_scale (str | None): Of the positions.
        trained (bool): Whether the DiT's own weights are trained, so that ``pretrained`` has them no longer.
        files: ``variant``, ``revision`` and ``dtype`` of the files of ``pretrained``.

    Raises:
        ValueError: Neither or both of ``pretrained`` and ``arch``, or files of the latter.
    """

    def __init__(self, pretrained: str | None, arch: dict | None, pos_scale: str | None, *, trained: bool, **files: Any):
        if (pretrained is None) == (arch is None):
            raise ValueError('DiTBackbone needs either pretrained (a folder or hub id) or arch (sizes, random weights)')
        if arch is not None and any(files.values()):
            raise ValueError(f'{files}: these are of the files of pretrained, and arch has none')
        self.pretrained, self.pos_scale, self.trained, self.revision = pretrained, pos_scale, trained, files.get('revision')
        self.refers = pretrained is not None  # whether the frozen weights are those of pretrained
        self._make = (functools.partial(Extractor.from_arch, arch) if pretrained is None else
                      functools.partial(Extractor.from_pretrained, pretrained, **files))
        self._dit: Shared | None = None
        self._reference: Reference | None = None

    def extractor(self, taps, **options) -> Extractor:
        """With ``taps`` that may come from a file, hence as lists, and without the VAE's decoder; ``options`` are its own."""
        taps = [tuple(tap) if isinstance(tap, list) else tap for tap in taps] if isinstance(taps, (list, tuple)) else taps
        made = self._make(taps, self.pos_scale, **options)
        made.encoder.drop_decoder()
        return made

    @property
    def holds(self) -> bool:
        """Whether the whole DiT is in memory."""
        return self._dit is not None

    def hold(self, dit: nn.Module):
        self._dit = Shared(dit)

    def let_go(self):
        self._dit = None

    def dit(self) -> nn.Module:
        """The whole DiT, loaded anew where it was let go.

        Raises:
            ValueError: ``pretrained`` does not have its weights.
        """
        if self._dit is None:
            if self.trained or not self.refers:
                raise ValueError('the DiT is folded at its timestep and cannot run at another, since its weights are not those '
                                 f'of pretrained={self.pretrained!r}: set backbone.fold=False where another may be wanted')
            self._dit = Shared(self._make(pos_scale=self.pos_scale).family)
        return self._dit.value

    def reference(self, whole: Callable[[], Extractor]) -> Reference | None:
        """What stands in checkpoints for the weights of ``pretrained``; None where these have been replaced.

        Hashing ``whole()`` takes seconds for a large DiT, so it is done when it is first asked for, and once.
        """
        if self.refers and self._reference is None:
            self._reference = Reference.of(str(self.pretrained), whole(), self.revision)
        return self._reference if self.refers else None
