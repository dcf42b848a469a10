"""One file per family of diffusion transformers, and the table that finds it by diffusers' class name.

A family is an ``nn.Module`` around diffusers' own model, with

- ``depth``, ``width``, ``patch_size``, ``in_channels``: blocks, channels of a token, latent pixels, latent channels;
- ``pos_scales``, where there is a choice of positions on other grids than the training's: its names, of which the attribute
  ``pos_scale`` holds one;
- ``condition(time, blocks)``: what the first ``blocks`` blocks need to know of the timesteps (B,) and of the null condition;
- ``embed(latent)``: (B, C, H, W) -> the state that the blocks pass on, for DiT the tokens (B, N, D);
- ``block(index, state, condition, need)``: one block -> (taps, state). ``need`` is the set of tap names that must be
  computed; taps is a dict of (B, N, D) that holds at least these, and state is None where 'hidden' is not needed;
- ``output(state, time, grid)``: the network's own prediction, (B, C_out, H, W), used to check parity.
"""
from .dit import DiT

FAMILIES = {'DiTTransformer2DModel': DiT}


def family_of(transformer):
    """Wraps a diffusers transformer in its family.

    Raises:
        ValueError: No family is known for this class.
    """
    name = type(transformer).__name__
    if name not in FAMILIES:
        raise ValueError(f'{name} is not supported: the known transformers are {", ".join(FAMILIES)}')
    return FAMILIES[name](transformer)
