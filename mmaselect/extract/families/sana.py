"""SANA (Xie et al. 2025, arXiv:2410.10629) and SANA-1.5 as diffusers' ``SanaTransformer2DModel``.

20, 28 or 60 blocks with linear self-attention, in which the text comes in by cross-attention, and a convolutional MLP. Latents
are those of ``AutoencoderDC``, one token for 32 x 32 pixels. The empty prompt is the pipeline's negative one; its padding is left
out, as the mask leaves it out.
"""
from ..reader import Blocks, names
from .base import Family, negative_prompt


class Sana(Family, wraps='SanaTransformer2DModel'):
    """Taps of the image's tokens, which are all that go through the blocks; 'query' to 'attn' are the self-attention's.

    Raises:
        ValueError: The model is SANA-Sprint, whose time is another (TrigFlow) than its scheduler says.
    """
    kinds = (Blocks('transformer_blocks', names('attn1')),)
    null_tokens = 1
    encode_null = staticmethod(negative_prompt)

    def __init__(self, model, null=None):
        super().__init__(model, null)
        if model.config.get('guidance_embeds'):
            raise ValueError('this is SANA-Sprint, which was distilled to a time of its own (TrigFlow) and not supported: take '
                             'SANA or SANA-1.5')
        self.width = model.config.num_attention_heads * model.config.attention_head_dim

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.caption_channels)}

    def inputs(self, noisy, time):
        return dict(hidden_states=noisy, timestep=time * self.config.get('timestep_scale', 1),
                    encoder_hidden_states=self.null_prompt_embeds.expand(len(noisy), -1, -1))  # (B, L, D_text)
