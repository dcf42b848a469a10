"""Images to features. Needs torch and diffusers, never OpenMMLab."""
from .extractor import FeatureExtractor
from .fold import fold
from .noise import NoiseProcess, seeded_noise
from .taps import TAPS, resolve

__all__ = ['TAPS', 'FeatureExtractor', 'NoiseProcess', 'fold', 'resolve', 'seeded_noise']
