"""mmaselect's registries: children of MMEngine's, in a scope of their own, so that configs of both toolboxes find them.

MMEngine imports this module by its name when a config says ``type='mmaselect.X'``.
"""
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmaselect', locations=['mmaselect.openmm'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmaselect', locations=['mmaselect.openmm'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmaselect', locations=['mmaselect.openmm.datasets'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry('optimizer wrapper constructor', parent=MMENGINE_CONSTRUCTORS, scope='mmaselect',
                                      locations=['mmaselect.openmm'])
VISUALIZERS = Registry('visualizer', parent=MMENGINE_VISUALIZERS, scope='mmaselect', locations=['mmaselect.openmm.visualizer'])
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='mmaselect', locations=['mmaselect.openmm'])
