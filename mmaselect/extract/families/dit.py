"""DiT (Peebles and Xie 2023, arXiv:2212.09748) as diffusers' ``DiTTransformer2DModel``."""
from functools import lru_cache

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid

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


class DiT(Family, wraps='DiTTransformer2DModel'):
    """The blocks of a DiT, one at a time. See the package's docstring for the interface."""
    pos_scales = ('interpolate', 'extrapolate')

    def __init__(self, model, null=None):
        super().__init__(model, null)
        self.pos_scale = 'interpolate'
        # Meta's code spaces the 128 frequencies of the time by 1 / 128 of their range. diffusers does by 1 / 127, also for the
        # checkpoints that it published. Ours of Meta's files say so in a key of their config that diffusers keeps and ignores.
        for block in model.transformer_blocks:
            time = block.norm1.emb.time_proj
            time.downscale_freq_shift = model.config.get('_downscale_freq_shift', time.downscale_freq_shift)
        share_embedders(model)

    def _embedding(self, embedder, time):
        """The embedding (B, D) of the time and of the null class, which LabelEmbedding keeps behind the classes."""
        null = torch.full_like(time, self.model.config.num_embeds_ada_norm, dtype=torch.long)
        table = embedder.class_embedder.embedding_table
        if table.num_embeddings <= self.model.config.num_embeds_ada_norm:
            raise ValueError('this DiT has no null class (it was trained without class dropout), so it has no unconditional '
                             'features')
        frequencies = embedder.time_proj(time).to(table.weight.dtype)  # (B, 256)
        # Looked up in the table, not asked of class_embedder: in training mode that one draws random labels.
        return F.silu(embedder.timestep_embedder(frequencies) + table(null))

    def condition(self, time, blocks):
        """The six modulations of adaLN-Zero, each (B, 1, D), for times (B,) and each of the first ``blocks`` blocks."""
        return [block.norm1.linear(self._embedding(block.norm1.emb, time))[:, None].chunk(6, dim=-1)
                for block in self.model.transformer_blocks[:blocks]]

    def embed(self, latent):
        return embed_patches(self.model.pos_embed.proj, latent, self.config.sample_size // self.patch_size, self.pos_scale)

    def block(self, index, state, condition, need):
        layers, attention = self.model.transformer_blocks[index], self.model.transformer_blocks[index].attn1
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = condition[index]
        x = state  # (B, N, D)
        modulated = layers.norm1.norm(x) * (1 + scale) + shift
        taps = self.project(attention, modulated, need)
        if need & {'attn', 'mlp', 'hidden'}:
            taps['attn'] = self.attend(attention, taps)
        if need & {'mlp', 'hidden'}:
            x = x + gate * taps['attn']
            taps['mlp'] = layers.ff(layers.norm3(x) * (1 + mlp_scale) + mlp_shift)
            taps['hidden'] = x + mlp_gate * taps['mlp']
        return taps, taps.get('hidden')

    def output(self, hidden, time, grid):
        embedding = self._embedding(self.model.transformer_blocks[0].norm1.emb, time)
        shift, scale = self.model.proj_out_1(embedding)[:, None].chunk(2, dim=-1)
        return self.unpatchify(self.model.proj_out_2(self.model.norm_out(hidden) * (1 + scale) + shift), grid)
