"""SD3 and SD3.5, the MMDiT of Esser et al. 2024 (arXiv:2403.03206), as diffusers' ``SD3Transformer2DModel``.

Tokens of the image and of the text have weights of their own and attend to one another. All taps are of the image's tokens:
'query', 'key' and 'value' are its projections before the split into heads and before the normalisation of queries and keys
that SD3.5 has, 'attn' is its part of the joint attention after the projection, and 'modulated' the input of that attention.
The attention over the image alone that SD3.5-medium adds to its first blocks (``attn2``) is part of 'hidden' only.
"""
from ..reader import Blocks
from .base import Family


class SD3(Family, wraps='SD3Transformer2DModel'):
    """Taps of the image's tokens, which have layers of their own beside the text's."""
    kinds = (Blocks('transformer_blocks', output=1),)
    null_tokens = 77 + 256  # of the two CLIP encoders, side by side, and of T5
    encoded = 'prompt_embeds', None, 'pooled_prompt_embeds'
    probed = {24: (9,)}  # Seg4Diff (arXiv:2509.18096); A-SelecT (arXiv:2603.25758)

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.joint_attention_dim),
                'pooled_prompt_embeds': (1, config.pooled_projection_dim)}

    def inputs(self, noisy, time):
        if most := self.config.pos_embed_max_size:
            self.check_grid(noisy.shape[-2:], (most, most))
        return dict(hidden_states=noisy, timestep=time,
                    encoder_hidden_states=self.null_prompt_embeds.expand(len(noisy), -1, -1),  # (B, L, D_text)
                    pooled_projections=self.null_pooled_prompt_embeds.expand(len(noisy), -1))
