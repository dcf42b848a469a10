"""The choice of a timestep. Needs torch and the extract floor, never OpenMMLab."""
from .images import TensorImages
from .measure import Measurement
from .policy import SelectionPolicy
from .result import Candidate, SelectionResult
from .scores import SCORES, Score, register
from .sweep import sweep

__all__ = ['SCORES', 'Candidate', 'Measurement', 'Score', 'SelectionPolicy', 'SelectionResult', 'TensorImages', 'register',
           'sweep']
