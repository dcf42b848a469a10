"""Lumina-Image 2.0 (Qin et al. 2025, arXiv:2503.21758) as diffusers' ``Lumina2Transformer2DModel``.

Blocks 0 and 1 are its noise refiners, which see the image alone; then come 26 blocks in which the text's tokens stand before the
image's. The network counts time from noise (0) to image (1). The empty prompt is the pipeline's negative one, which has no system
prompt; its padding is left out, as the mask leaves it out.
"""
import torch

from ..reader import Blocks, names
from .base import Family

TAPS = names(mlp='feed_forward')


class Lumina2(Family, wraps='Lumina2Transformer2DModel'):
    """Taps of the image's tokens. Several heads share keys and values, which therefore have fewer channels."""
    kinds = Blocks('noise_refiner', TAPS), Blocks('layers', TAPS)
    null_tokens = 1

    def __init__(self, model, null=None):
        super().__init__(model, null)
        self.width = model.config.hidden_size

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.cap_feat_dim)}

    @classmethod
    def encode_null(cls, pipeline, device):
        _, _, embeds, mask = pipeline.encode_prompt('', negative_prompt='', device=device)
        return {'prompt_embeds': embeds[:, mask[0].bool()]}  # (1, L, D_text)

    def inputs(self, noisy, time):
        most = self.config.axes_lens[1:]
        grid = [side // self.patch_size for side in noisy.shape[-2:]]
        if any(side > limit for side, limit in zip(grid, most, strict=True)):
            raise ValueError(f'{grid[0]} x {grid[1]} tokens are more than the {most[0]} x {most[1]} positions that this Lumina 2 '
                             "has: cut the images, for instance with test_cfg=dict(mode='slide', ...), or shrink them")
        prompt = self.null_prompt_embeds.expand(len(noisy), -1, -1)  # (B, L, D_text)
        return dict(hidden_states=noisy, timestep=1 - time / 1000, encoder_hidden_states=prompt,
                    encoder_attention_mask=torch.ones(prompt.shape[:2], dtype=torch.bool, device=noisy.device))
