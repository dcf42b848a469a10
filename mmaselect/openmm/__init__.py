"""Adapters that let OpenMMLab's configs use the lower floors. No maths here."""
try:
    import mmengine  # noqa: F401
except ImportError as error:
    from mmaselect import INSTALL
    raise ImportError(INSTALL) from error

from .backbone import DiTBackbone
from .caches.features import CachedFeatures
from .hook import AutoTimestepHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .neck import AutoTimestepNeck
from .swap import swap
from .transforms import FlipLatents, LoadFeatures, LoadLatents

__all__ = ['AutoTimestepHook', 'AutoTimestepNeck', 'CachedFeatures', 'DiTBackbone', 'FlipLatents',
           'LayerDecayOptimWrapperConstructor', 'LoadFeatures', 'LoadLatents', 'swap']
