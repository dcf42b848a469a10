"""mmaselect: a pretrained Diffusion Transformer as a backbone for MMSegmentation and MMPretrain.

``mmaselect.extract`` and ``mmaselect.selection`` need torch and diffusers only; ``register_all_modules`` adds what OpenMMLab
configs use.
"""
import importlib.util
import warnings

from .version import __version__

__all__ = ['__version__', 'register_all_modules']

INSTALL = ("mmaselect's OpenMMLab adapters need one of two stacks, never both: pip install 'mmaselect[onedl]' (maintained "
           "forks, torch 2.4 and newer) or 'mmaselect[openmmlab]' (stock, torch up to 2.1)")

if importlib.util.find_spec('mmengine') is None:
    warnings.warn(INSTALL, stacklevel=2)


def register_all_modules():
    """Registers DiTBackbone, AutoTimestepNeck and AutoTimestepHook with MMEngine.

    Raises:
        ImportError: No OpenMMLab stack is installed.
    """
    from . import openmm  # noqa: F401
