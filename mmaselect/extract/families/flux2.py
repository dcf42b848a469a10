"""FLUX.2 (Black Forest Labs 2025), dev and klein, as diffusers' ``Flux2Transformer2DModel``.

8 double-stream blocks come before 48 single-stream ones in dev. Their modulation is shared by all blocks of a kind. Latents are
those of ``AutoencoderKLFlux2``, patchified to 128 channels and normalised before the noise is added, so that a token is one
latent pixel. The empty prompt is all 512 tokens of the text encoder, padding included.
"""
from collections.abc import Sequence

import torch

from ..reader import Blocks, names
from .base import Family

GUIDANCE = 4.0  # the pipeline's default, which dev was distilled to be given
FUSED = 'attn.to_qkv_mlp_proj'  # queries, keys, values and the MLP's input by one layer


class Flux2(Family, wraps='Flux2Transformer2DModel'):
    """Taps of the image's tokens. Single-stream blocks make attention and MLP by one layer: they have no 'attn' and no 'mlp'."""
    kinds = (Blocks('transformer_blocks', output=1),
             Blocks('single_transformer_blocks',
                    names(query=(FUSED, 0), key=(FUSED, 1), value=(FUSED, 2), modulated=FUSED, attn=None, mlp=None)))
    needs = '2.4'  # torch.nn.RMSNorm
    null_tokens = 512
    encoded = ('prompt_embeds',)

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.joint_attention_dim)}

    def inputs(self, noisy, time):
        device = noisy.device
        one, rows, columns = (torch.arange(count, device=device) for count in (1, *noisy.shape[-2:]))
        prompt = self.null_prompt_embeds.expand(len(noisy), -1, -1)  # (B, L, D_text)
        guidance = torch.full_like(time, GUIDANCE) if self.config.guidance_embeds else None
        return dict(hidden_states=noisy.flatten(2).transpose(1, 2),  # (B, h * w, C)
                    timestep=time / 1000, guidance=guidance, encoder_hidden_states=prompt,
                    img_ids=torch.cartesian_prod(one, rows, columns, one),
                    txt_ids=torch.cartesian_prod(one, one, one, torch.arange(prompt.shape[1], device=device)))

    def unpack(self, output: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return output.transpose(1, 2).unflatten(2, list(size))  # (B, C, H, W)
