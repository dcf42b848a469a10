"""The choice of a timestep. Needs torch and the extract floor, never OpenMMLab."""
from .result import Candidate, SelectionResult
from .scores import SCORES, Score, register
from .sweep import batches_of, sweep

__all__ = ['SCORES', 'Candidate', 'Score', 'SelectionResult', 'batches_of', 'register', 'sweep']
