"""PRX (Photoroom 2025) as diffusers' ``PRXTransformer2DModel``.

16 blocks through which the image's tokens go alone; the text's are keys and values of their attention. The empty prompt is the
pipeline's negative one; its padding is left out, as the mask leaves it out.
"""
from ..reader import Blocks, names
from .base import Family, negative_prompt

FUSED = 'attention.img_qkv_proj'  # queries, keys and values by one layer


class PRX(Family, wraps='PRXTransformer2DModel'):
    """Taps of the image's tokens; 'mlp' is the gated MLP's last layer."""
    kinds = (Blocks('blocks', names('attention', query=(FUSED, 0), key=(FUSED, 1), value=(FUSED, 2), modulated=FUSED,
                                    mlp='down_proj')),)
    null_tokens = 1
    encode_null = staticmethod(negative_prompt)

    def __init__(self, model, null=None):
        super().__init__(model, null)
        self.width = model.config.hidden_size

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.context_in_dim)}

    def inputs(self, noisy, time):
        return dict(hidden_states=noisy, timestep=time / 1000,
                    encoder_hidden_states=self.null_prompt_embeds.expand(len(noisy), -1, -1))  # (B, L, D_text)
