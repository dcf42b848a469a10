"""PixArt-alpha and -sigma (Chen et al. 2023, arXiv:2310.00426, and 2024, arXiv:2403.04692) as diffusers'
``PixArtTransformer2DModel``.

DiT's block with a cross-attention to the caption between the attention and the MLP, and one projection of the time for all
blocks (adaLN-single), to which each adds a table of its own. All taps but 'mlp' and 'hidden' lie before the cross-attention.
"""
import torch

from ..reader import Blocks, names
from .base import Family

VAE_STRIDE = 8  # image pixels per latent pixel of the VAEs that PixArt was trained with


class PixArt(Family, wraps='PixArtTransformer2DModel'):
    """All taps of the image's tokens, which are all there are.

    The models of 1024 pixels are told the size of the image. This is here always the square that the model was trained on,
    over which the positions are stretched too.
    """
    kinds = (Blocks('transformer_blocks', names('attn1')),)
    null_tokens = 1  # T5's empty prompt: the end of the sentence
    encoded = 'prompt_embeds', 'prompt_attention_mask'

    def __init__(self, model, null):
        kept = null['prompt_attention_mask'][0].bool()  # (L,): all else is padding, which nothing attends to
        super().__init__(model, {'prompt_embeds': null['prompt_embeds'][:, kept]})

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.caption_channels or config.cross_attention_dim),
                'prompt_attention_mask': (1, tokens)}

    def inputs(self, noisy, time):
        side = float(self.config.sample_size * VAE_STRIDE)
        size = dict(resolution=noisy.new_full((len(noisy), 2), side, dtype=torch.float32),
                    aspect_ratio=noisy.new_ones(len(noisy), 1, dtype=torch.float32))
        caption = self.null_prompt_embeds.expand(len(noisy), -1, -1)  # (B, L, D_text)
        return dict(hidden_states=noisy, encoder_hidden_states=caption, timestep=time, added_cond_kwargs=size)
