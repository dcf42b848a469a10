"""mmaselect: a pretrained Diffusion Transformer as a backbone for MMSegmentation and MMPretrain.

``FeatureExtractor`` and ``select_timestep`` need torch and diffusers only; ``register_all_modules`` adds what OpenMMLab configs
use; ``check_env`` says what is installed. All of them are imported when they are first used.
"""
import importlib
from typing import Any

from .version import __version__

__all__ = ['FeatureExtractor', '__version__', 'check_env', 'register_all_modules', 'select_timestep']

INSTALL = ("mmaselect's OpenMMLab adapters need one of two stacks, never both: pip install 'mmaselect[onedl]' (maintained "
           "forks, torch 2.4 and newer) or 'mmaselect[openmmlab]' (stock, torch up to 2.1)")
HOMES = {'FeatureExtractor': 'notebook', 'check_env': 'environment', 'select_timestep': 'notebook'}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'.{HOMES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})


def register_all_modules() -> None:
    """Registers DiTBackbone, AutoTimestepNeck and AutoTimestepHook with MMEngine.

    Raises:
        ImportError: No OpenMMLab stack is installed.
    """
    from . import openmm  # noqa: F401
