"""PixArt-alpha and -sigma (Chen et al. 2023, arXiv:2310.00426, and 2024, arXiv:2403.04692) as diffusers'
``PixArtTransformer2DModel``.

DiT's block with a cross-attention to the caption between the attention and the MLP, and one projection of the time for all
blocks (adaLN-single), to which each adds a table of its own. All taps but 'mlp' and 'hidden' lie before the cross-attention.
"""
import torch

from .base import Family

VAE_STRIDE = 8  # image pixels per latent pixel of the VAEs that PixArt was trained with


class PixArt(Family, wraps='PixArtTransformer2DModel'):
    """The blocks of a PixArt, one at a time. The state is the tokens (B, N, D).

    The models of 1024 pixels are told the size of the image. This is here always the square that the model was trained on,
    over which the positions are stretched too.
    """
    null_tokens = 1  # T5's empty prompt: the end of the sentence

    def __init__(self, model, null):
        kept = null['prompt_attention_mask'][0].bool()  # (L,): all else is padding, which nothing attends to
        super().__init__(model, {'prompt_embeds': null['prompt_embeds'][:, kept]})

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.caption_channels or config.cross_attention_dim),
                'prompt_attention_mask': (1, tokens)}

    @staticmethod
    def encode_null(pipeline, device):
        embeds, mask, _, _ = pipeline.encode_prompt('', device=device, do_classifier_free_guidance=False)
        return {'prompt_embeds': embeds, 'prompt_attention_mask': mask}

    def _embedding(self, time):
        """The projection (B, 6 D) for all blocks, and the embedding (B, D) of the time and the size that it is made of."""
        side = float(self.config.sample_size * VAE_STRIDE)
        size = dict(resolution=torch.full((len(time), 2), side, device=time.device),
                    aspect_ratio=torch.ones(len(time), 1, device=time.device))
        table = self.model.scale_shift_table
        return self.model.adaln_single(time, size, batch_size=len(time), hidden_dtype=table.dtype)

    def condition(self, time, blocks):
        """Per block its six modulations, each (B, 1, D), and the projected caption (1, L, D)."""
        caption, project = self.null_prompt_embeds, self.model.caption_projection
        caption = caption if project is None else project(caption)  # (1, L, D)
        shared = self._embedding(time)[0].unflatten(1, (6, -1))  # (B, 6, D)
        return [(*(block.scale_shift_table + shared).chunk(6, dim=1), caption)
                for block in self.model.transformer_blocks[:blocks]]

    def embed(self, latent):
        return self.model.pos_embed(latent)  # (B, h * w, D)

    def block(self, index, state, condition, need):
        layers, attention = self.model.transformer_blocks[index], self.model.transformer_blocks[index].attn1
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, caption = condition[index]
        x = state  # (B, N, D)
        modulated = layers.norm1(x) * (1 + scale) + shift
        taps = self.project(attention, modulated, need)
        if need & {'attn', 'mlp', 'hidden'}:
            taps['attn'] = self.attend(attention, taps)
        if need & {'mlp', 'hidden'}:
            x = x + gate * taps['attn']
            x = x + layers.attn2(x, encoder_hidden_states=caption.expand(len(x), -1, -1))
            taps['mlp'] = layers.ff(layers.norm2(x) * (1 + mlp_scale) + mlp_shift)
            taps['hidden'] = x + mlp_gate * taps['mlp']
        return taps, taps.get('hidden')

    def output(self, hidden, time, grid):
        embedding = self._embedding(time)[1][:, None]  # (B, 1, D)
        shift, scale = (self.model.scale_shift_table + embedding).chunk(2, dim=1)
        return self.unpatchify(self.model.proj_out(self.model.norm_out(hidden) * (1 + scale) + shift), grid)
