"""FLUX.1 (Black Forest Labs 2024), dev and schnell, as diffusers' ``FluxTransformer2DModel``.

19 double-stream blocks, in which image and text have layers of their own, come before 38 single-stream blocks, which share them;
blocks count on through both. A token is 2 x 2 latent pixels. The empty prompt is all 512 tokens of T5, padding included, since
the model was trained without a mask.
"""
from collections.abc import Mapping, Sequence

import torch

from ..reader import Blocks, names
from .base import Family, pack, unpack

GUIDANCE = 3.5  # the pipeline's default, which dev was distilled to be given


class Flux(Family, wraps='FluxTransformer2DModel'):
    """Taps of the image's tokens. Single-stream blocks make attention and MLP by one layer: they have no 'attn' and no 'mlp'."""
    kinds = (Blocks('transformer_blocks', output=1),
             Blocks('single_transformer_blocks', names(attn=None, mlp=None), output=1))
    needs = '2.4'  # torch.nn.RMSNorm
    null_tokens = 512
    encoded = 'prompt_embeds', 'pooled_prompt_embeds'
    # Double-stream blocks 15 to 18 for segmentation (ConceptAttention, Helbling et al. 2025, arXiv:2502.04320); 24 for
    # segmentation in videos (DAVIS); 28 for correspondences (DiTF).
    probed = {57: (16, 24, 28)}

    def __init__(self, model: torch.nn.Module, null: Mapping[str, torch.Tensor] | None = None):
        super().__init__(model, null)
        self.patch_size = 2

    @staticmethod
    def latent_channels(config):
        return config['in_channels'] // 4

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.joint_attention_dim),
                'pooled_prompt_embeds': (1, config.pooled_projection_dim)}

    def inputs(self, noisy, time):
        height, width = (side // 2 for side in noisy.shape[-2:])
        ids = torch.zeros(height, width, 3, device=noisy.device)
        ids[..., 1] = torch.arange(height, device=noisy.device)[:, None]
        ids[..., 2] = torch.arange(width, device=noisy.device)
        prompt = self.null_prompt_embeds.expand(len(noisy), -1, -1)  # (B, L, D_text)
        guidance = torch.full_like(time, GUIDANCE) if self.config.guidance_embeds else None
        return dict(hidden_states=pack(noisy),  # (B, h * w, 4 C)
                    timestep=time / 1000, guidance=guidance, encoder_hidden_states=prompt,
                    pooled_projections=self.null_pooled_prompt_embeds.expand(len(noisy), -1),
                    img_ids=ids.flatten(0, 1), txt_ids=ids.new_zeros(prompt.shape[1], 3))

    def unpack(self, output: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return unpack(output, size)  # (B, C, H, W)
