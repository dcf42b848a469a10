"""SD3 and SD3.5, the MMDiT of Esser et al. 2024 (arXiv:2403.03206), as diffusers' ``SD3Transformer2DModel``.

Tokens of the image and of the text have weights of their own and attend to one another. All taps are of the image's tokens:
'query', 'key' and 'value' are its projections before the split into heads and before the normalisation of queries and keys
that SD3.5 has, 'attn' is its part of the joint attention after the projection, and 'modulated' the input of that attention.
The attention over the image alone that SD3.5-medium adds to its first blocks (``attn2``) is part of 'hidden' only.
"""
import torch
import torch.nn.functional as F

from .base import Family


class SD3(Family, wraps='SD3Transformer2DModel'):
    """The blocks of an SD3, one at a time. The state is the tokens of the image (B, N, D) and of the text (B, L, D)."""
    null_tokens = 77 + 256  # of the two CLIP encoders, side by side, and of T5

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.joint_attention_dim),
                'pooled_prompt_embeds': (1, config.pooled_projection_dim)}

    @staticmethod
    def encode_null(pipeline, device):
        embeds, _, pooled, _ = pipeline.encode_prompt('', None, None, device=device, do_classifier_free_guidance=False)
        return {'prompt_embeds': embeds, 'pooled_prompt_embeds': pooled}

    def _embedding(self, time):
        """The embedding (B, D) of times (B,) and of the pooled null prompt."""
        return self.model.time_text_embed(time, self.null_pooled_prompt_embeds.expand(len(time), -1))

    def condition(self, time, blocks):
        """Per block the modulations of the image's and of the text's tokens, each (B, 1, D).

        Of the image six, or nine with a second attention; of the text six, or two in the last block, which ends its stream.
        """
        embedding = F.silu(self._embedding(time))

        def modulations(norm):
            return norm.linear(embedding).unflatten(1, (-1, 1, self.width)).unbind(1)

        conditions = []
        for block in self.model.transformer_blocks[:blocks]:
            text = modulations(block.norm1_context)
            # diffusers' AdaLayerNormContinuous, in the last block, has the scale before the shift.
            conditions.append((modulations(block.norm1), text[::-1] if block.context_pre_only else text))
        return conditions

    def embed(self, latent):
        most = self.config.pos_embed_max_size
        height, width = (side // self.patch_size for side in latent.shape[-2:])
        if most and max(height, width) > most:
            raise ValueError(f'{height} x {width} tokens are more than the {most} x {most} positions that this SD3 has: cut the '
                             "images, for instance with test_cfg=dict(mode='slide', ...), or shrink them")
        text = self.model.context_embedder(self.null_prompt_embeds)  # (1, L, D)
        return self.model.pos_embed(latent), text.expand(len(latent), -1, -1)  # (B, h * w, D), (B, L, D)

    def block(self, index, state, condition, need):
        layers, attention = self.model.transformer_blocks[index], self.model.transformer_blocks[index].attn
        (shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *dual), (text_shift, text_scale, *text_rest) = condition[index]
        x, text = state  # (B, N, D), (B, L, D)
        normed = layers.norm1.norm(x)
        modulated = normed * (1 + scale) + shift
        taps = self.project(attention, modulated, need)
        if need & {'attn', 'mlp', 'hidden'}:
            text_modulated = layers.norm1_context.norm(text) * (1 + text_scale) + text_shift
            mixed, text_mixed = self._attend(attention, taps, text_modulated)
            taps['attn'] = attention.to_out[0](mixed)
        if need & {'mlp', 'hidden'}:
            x = x + gate * taps['attn']
            if dual:
                dual_shift, dual_scale, dual_gate = dual
                x = x + dual_gate * layers.attn2(normed * (1 + dual_scale) + dual_shift)
            taps['mlp'] = layers.ff(layers.norm2(x) * (1 + mlp_scale) + mlp_shift)
            taps['hidden'] = x + mlp_gate * taps['mlp']
        if 'hidden' not in need:
            return taps, None
        if text_rest:
            text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = text_rest
            text = text + text_gate * attention.to_add_out(text_mixed)
            text_mlp = layers.ff_context(layers.norm2_context(text) * (1 + text_mlp_scale) + text_mlp_shift)
            text = text + text_mlp_gate * text_mlp
        return taps, (taps['hidden'], text)

    def _attend(self, attention, taps, text):
        """Joint attention: the mixed values (B, N, D) of the image and (B, L, D) of the text, before their projections."""
        def heads(x, norm):
            x = self.split(x)  # (B, heads, N, D / heads)
            return x if norm is None else norm(x)

        query, key, value = (
            torch.cat([heads(taps[name], norm), heads(project(text), text_norm)], dim=2)  # (B, heads, N + L, D / heads)
            for name, norm, project, text_norm in (
                ('query', attention.norm_q, attention.add_q_proj, attention.norm_added_q),
                ('key', attention.norm_k, attention.add_k_proj, attention.norm_added_k),
                ('value', None, attention.add_v_proj, None)))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, N + L, D)
        return mixed.tensor_split([taps['query'].shape[1]], dim=1)

    def output(self, hidden, time, grid):
        return self.unpatchify(self.model.proj_out(self.model.norm_out(hidden, self._embedding(time))), grid)
