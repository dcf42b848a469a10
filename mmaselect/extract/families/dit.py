"""DiT (Peebles and Xie 2023, arXiv:2212.09748) as diffusers' ``DiTTransformer2DModel``."""
from functools import lru_cache

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid

from ..reader import Blocks, names
from .base import Family


@lru_cache(maxsize=32)
def positions(width, grid, base, scale, device, dtype):
    """Sin-cos positions of a grid of tokens, as in DiT's code: the first half of the channels encodes x, the second y.

    Args:
        width (int): Channels D.
        grid (tuple[int, int]): Tokens (h, w).
        base (int): Side of the square grid of the training, whose tokens were at 0, 1, ..., base - 1.
        scale (str): 'interpolate' stretches each side of ``grid`` over the training's on its own, so that row i is at
            i * base / h and column j at j * base / w. 'extrapolate' keeps the training's spacing, row i at i and column j at j,
            and goes on beyond its end where the grid is larger.
        device, dtype: Of the result.

    Returns:
        Tensor: (1, h * w, D), row by row.
    """
    y, x = (torch.arange(side, dtype=torch.float64) * (base / side if scale == 'interpolate' else 1) for side in grid)
    places = torch.stack(torch.meshgrid(x, y, indexing='xy'))  # (2, h, w), x first
    return get_2d_sincos_pos_embed_from_grid(width, places, output_type='pt').float()[None].to(device, dtype)


def embed_patches(projection, latent, base, scale):
    """Latents (B, C, H, W) -> patches by a convolution, with their ``positions`` added: tokens (B, h * w, D)."""
    patches = projection(latent)  # (B, D, h, w)
    grid = tuple(patches.shape[-2:])
    places = positions(patches.shape[1], grid, base, scale, patches.device, patches.dtype)  # (1, h * w, D)
    return patches.flatten(2).transpose(1, 2) + places  # (B, h * w, D)


def share_embedders(model):
    """Lets all blocks use the first one's embedder of times and labels where theirs are equal to it.

    diffusers keeps one per block; DiT has one in all, which published checkpoints hold as many times as there are blocks.
    safetensors stores no tensor under two names, so that a model treated so cannot be saved by ``save_pretrained``.
    """
    first, *others = (block.norm1 for block in model.transformer_blocks)
    for other in others:
        pairs = list(zip(first.emb.parameters(), other.emb.parameters(), strict=True))
        if all(a.shape == b.shape and not a.is_meta and torch.equal(a, b) for a, b in pairs):
            other.emb = first.emb


def set_frequencies(model):
    """Spaces the 128 frequencies of the time as the weights were trained with: Meta's code by 1 / 128 of their range, diffusers
    by 1 / 127, also for the checkpoints that it published. Those that we converted of Meta's files say so in a key of their
    config that diffusers keeps and ignores."""
    for block in model.transformer_blocks:
        time = block.norm1.emb.time_proj
        time.downscale_freq_shift = model.config.get('_downscale_freq_shift', time.downscale_freq_shift)


class DiT(Family, wraps='DiTTransformer2DModel'):
    """All taps of the image's tokens, which are all there are; the condition is the null class."""
    kinds = (Blocks('transformer_blocks', names('attn1')),)
    pos_scales = ('interpolate', 'extrapolate')

    def __init__(self, model, null=None):
        super().__init__(model, null)
        self.pos_scale = 'interpolate'
        set_frequencies(model)
        for block in model.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0  # the label is the null class: no need to draw which to drop
        share_embedders(model)

    def inputs(self, noisy, time):
        null = self.config.num_embeds_ada_norm  # its row is behind those of the classes
        embedder = self.model.transformer_blocks[0].norm1.emb.class_embedder
        if embedder.embedding_table.num_embeddings <= null:
            raise ValueError('this DiT has no null class (it was trained without class dropout), so it has no unconditional '
                             'features')
        return dict(hidden_states=noisy, timestep=time, class_labels=torch.full_like(time, null, dtype=torch.long))

    def overrides(self):
        """diffusers' positions are computed anew at each call for another grid than the training's, and only interpolate."""
        base = self.config.sample_size // self.patch_size
        return {self.model.pos_embed: lambda latent: embed_patches(self.model.pos_embed.proj, latent, base, self.pos_scale)}
