"""One file per family of diffusion transformers, and the table that finds it by diffusers' class name.

To add a family, add a file: all modules of this folder are imported, and a subclass of ``Family`` registers itself. diffusers'
own forward is run and read (``extract.reader``), so that the file says only what differs between the models:

- ``class Flux(Family, wraps='FluxTransformer2DModel')``: the class of diffusers;
- ``kinds``: the lists of blocks in the order in which they run, and where the taps and the image's tokens are in each kind of
  block; see ``reader.Blocks`` and ``reader.names``;
- ``inputs(noisy, time)``: the arguments of the model's forward. ``noisy`` is (B, C, H, W), latents as the VAE adapter gives them
  with noise; ``time`` is (B,), float32, the scheduler's own timestep as the pipeline holds it, to be treated as the pipeline
  does (FLUX divides it by 1000); the null condition is in the buffers ``self.null_<name>``;
- ``unpack(output, size)``: what the forward returns -> (B, C, H, W), where it is something else; for ``predict``, by which
  parity is checked;
- ``latent_channels(config)``: where they are not the config's ``in_channels``, as where 2 x 2 latent pixels are packed in one;
- ``width`` and ``patch_size`` (latent pixels per token), where ``Family`` does not find them in the model: set them in
  ``__init__``, behind super's;
- ``overrides()``: functions to be called in place of some modules' forward, such as positions of grids that diffusers lacks;
- ``probed``: blocks that papers found best, by the model's depth, for the sweep to try them where it chooses the tap;
- ``ours``: the model's class where diffusers has none; a ``ModelMixin`` with ``ConfigMixin``, as LightningDiT's;
- ``pos_scales``, where there is a choice of positions on other grids than the training's: its names, of which the attribute
  ``pos_scale`` holds one.

A family that is conditioned on text has a null condition too, the empty prompt: see ``null_prompt``. It adds

- ``null_shapes(config, tokens)``: the tensors of the null condition by name, and their shapes for a prompt of ``tokens``;
- ``null_tokens``: how many tokens the empty prompt has;
- ``encoded``: which of these tensors the pipeline's ``encode_prompt`` returns in each place, None for what is not needed; or
  ``encode_null(pipeline, device)``, where the empty prompt has to be asked for in another way.

What several need is in ``base``: ``pack`` and ``unpack`` of 2 x 2 latent pixels, ``negative_prompt`` and ``unpadded`` for null
conditions, and ``Family.check_grid`` where there are positions for so many tokens alone.

``folded_dit.FoldedDiT`` is a family too, but for a fixed set of ``timesteps``, and walks its blocks itself.
"""
import importlib
import pkgutil

from .base import Family

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')

FAMILIES = Family.known
TO_ADD = 'To add it, copy the file of the one most like it in mmaselect/extract/families/'


def family_of(transformer, null=None):
    """Wraps a diffusers transformer, and the tensors of its null condition where it needs any, in its family.

    Raises:
        ValueError: No family is known for this class, or its null condition is missing.
    """
    name = type(transformer).__name__
    if name not in FAMILIES:
        raise ValueError(f'{name} is not supported: the known transformers are {", ".join(FAMILIES)}. {TO_ADD}')
    missing = FAMILIES[name].null_shapes(transformer.config, 1).keys() - (null or {}).keys()
    if missing:
        raise ValueError(f'{name} is conditioned on text and needs its null prompt: {", ".join(sorted(missing))} are missing')
    return FAMILIES[name](transformer, null)
