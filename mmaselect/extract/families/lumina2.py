"""Lumina-Image 2.0 (Qin et al. 2025, arXiv:2503.21758) as diffusers' ``Lumina2Transformer2DModel``.

Blocks 0 and 1 are its noise refiners, which see the image alone; then come 26 blocks in which the text's tokens stand before the
image's. The network counts time from noise (0) to image (1). The empty prompt is the pipeline's negative one, which has no system
prompt; its padding is left out, as the mask leaves it out.
"""
import torch

from ..reader import Blocks, names
from .base import Family, negative_prompt

TAPS = names(mlp='feed_forward')


class Lumina2(Family, wraps='Lumina2Transformer2DModel'):
    """Taps of the image's tokens. Several heads share keys and values, which therefore have fewer channels."""
    kinds = Blocks('noise_refiner', TAPS), Blocks('layers', TAPS)
    null_tokens = 1
    encode_null = staticmethod(negative_prompt)

    def __init__(self, model, null=None):
        super().__init__(model, null)
        self.width = model.config.hidden_size

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.cap_feat_dim)}

    def inputs(self, noisy, time):
        self.check_grid(noisy.shape[-2:], self.config.axes_lens[1:])
        prompt = self.null_prompt_embeds.expand(len(noisy), -1, -1)  # (B, L, D_text)
        return dict(hidden_states=noisy, timestep=1 - time / 1000, encoder_hidden_states=prompt,
                    encoder_attention_mask=torch.ones(prompt.shape[:2], dtype=torch.bool, device=noisy.device))
