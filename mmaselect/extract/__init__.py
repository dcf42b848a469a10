"""Images to features. Needs torch and diffusers, never OpenMMLab."""
from .extractor import FeatureExtractor
from .noise import NoiseProcess, seeded_noise
from .taps import TAPS, resolve

__all__ = ['TAPS', 'FeatureExtractor', 'NoiseProcess', 'resolve', 'seeded_noise']
