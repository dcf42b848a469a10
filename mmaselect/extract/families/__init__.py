"""One file per family of diffusion transformers, and the table that finds it by diffusers' class name.

To add a family, add a file: all modules of this folder are imported, and a subclass of ``Family`` registers itself. It wraps
diffusers' own model and has

- ``depth``, ``width``, ``patch_size``, ``in_channels``: blocks, channels of a token, latent pixels, latent channels. ``Family``
  reads them off the model;
- ``pos_scales``, where there is a choice of positions on other grids than the training's: its names, of which the attribute
  ``pos_scale`` holds one;
- ``embed(latent)``: (B, C, H, W) -> the state that the blocks pass on: for DiT the tokens (B, N, D), for SD3 those of the image
  and of the text;
- ``condition(time, blocks)``: a list with what each of the first ``blocks`` blocks needs to know of the model's times (B,) and
  of the null condition. It depends on nothing else, so that it can be kept while these stay the same;
- ``block(index, state, condition, need)``: one block -> (taps, state). ``need`` is the set of tap names that must be
  computed; taps is a dict of (B, N, D) that holds at least these, and state is None where 'hidden' is not needed;
- ``output(hidden, time, grid)``: the network's own prediction, (B, C_out, H, W), from the last block's 'hidden', used to check
  parity.

A family that is conditioned on text has a null condition too, the empty prompt: see ``null_prompt``. It adds

- ``null_shapes(config, tokens)``: the tensors of the null condition by name, and their shapes for a prompt of ``tokens``;
- ``null_tokens``: how many tokens the empty prompt has;
- ``encode_null(pipeline, device)``: these tensors, made by diffusers' pipeline. The family finds them in ``self.null_<name>``.

``folded_dit.FoldedDiT`` is a family too, but for a fixed set of ``timesteps``: its ``condition`` takes their places in that set.
"""
import importlib
import pkgutil

from .base import Family

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')

FAMILIES = Family.known


def family_of(transformer, null=None):
    """Wraps a diffusers transformer, and the tensors of its null condition where it needs any, in its family.

    Raises:
        ValueError: No family is known for this class, or its null condition is missing.
    """
    name = type(transformer).__name__
    if name not in FAMILIES:
        raise ValueError(f'{name} is not supported: the known transformers are {", ".join(FAMILIES)}')
    missing = FAMILIES[name].null_shapes(transformer.config, 1).keys() - (null or {}).keys()
    if missing:
        raise ValueError(f'{name} is conditioned on text and needs its null prompt: {", ".join(sorted(missing))} are missing')
    return FAMILIES[name](transformer, null)
