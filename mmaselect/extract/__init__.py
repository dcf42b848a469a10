"""Images to features. Needs torch and diffusers, never OpenMMLab."""
from .extractor import Extractor
from .fold import fold
from .noise import NoiseProcess, seeded_noise
from .taps import TAPS, resolve

__all__ = ['TAPS', 'Extractor', 'NoiseProcess', 'fold', 'resolve', 'seeded_noise']
