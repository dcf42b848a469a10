"""Adapters that let OpenMMLab's configs use the lower floors. No maths here."""
try:
    import mmengine  # noqa: F401
except ImportError as error:
    from mmaselect import INSTALL
    raise ImportError(INSTALL) from error

from .backbone import DiTBackbone
from .cached import CachedFeatures, FlipLatents, LoadFeatures, LoadLatents
from .hook import AutoTimestepHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .neck import AutoTimestepNeck
from .safe_load import enable_safe_loading
from .swap import swap

__all__ = ['AutoTimestepHook', 'AutoTimestepNeck', 'CachedFeatures', 'DiTBackbone', 'FlipLatents',
           'LayerDecayOptimWrapperConstructor', 'LoadFeatures', 'LoadLatents', 'swap']

enable_safe_loading()
