"""Qwen-Image (Alibaba 2025, arXiv:2508.02324) as diffusers' ``QwenImageTransformer2DModel``.

60 double-stream blocks, in which image and text have layers of their own. A token is 2 x 2 latent pixels of
``AutoencoderKLQwenImage``, and positions count from the image's centre. The empty prompt is what the pipeline keeps of its
template; padding is left out.
"""
import inspect
from collections.abc import Mapping, Sequence

import torch

from ..reader import Blocks, names
from .base import Family, pack, unpack, unpadded


class QwenImage(Family, wraps='QwenImageTransformer2DModel'):
    """Taps of the image's tokens.

    Raises:
        ValueError: The model is one of layers (Qwen-Image-Layered), which a single image is not.
    """
    kinds = (Blocks('transformer_blocks', names(mlp='img_mlp'), output=1),)
    needs = '2.4'  # torch.compiler.is_compiling
    null_tokens = 8

    def __init__(self, model: torch.nn.Module, null: Mapping[str, torch.Tensor] | None = None):
        super().__init__(model, null)
        if model.config.get('use_additional_t_cond') or model.config.get('use_layer3d_rope'):
            raise ValueError('this is Qwen-Image-Layered, which takes several layers of an image and is not supported: take '
                             'Qwen-Image')
        self.patch_size = 2

    @staticmethod
    def latent_channels(config):
        return config['in_channels'] // 4

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.joint_attention_dim)}

    @classmethod
    def encode_null(cls, pipeline, device):
        embeds, mask = pipeline.encode_prompt('', device=device)
        return unpadded(embeds, mask)

    def inputs(self, noisy, time):
        height, width = (side // 2 for side in noisy.shape[-2:])
        prompt = self.null_prompt_embeds.expand(len(noisy), -1, -1)  # (B, L, D_text)
        made = dict(hidden_states=pack(noisy),  # (B, h * w, 4 C)
                    timestep=time / 1000, encoder_hidden_states=prompt, img_shapes=[[(1, height, width)]] * len(noisy))
        if 'txt_seq_lens' in inspect.signature(self.model.forward).parameters:  # diffusers before 0.37
            made.update(txt_seq_lens=[prompt.shape[1]] * len(noisy),
                        encoder_hidden_states_mask=torch.ones(prompt.shape[:2], dtype=torch.bool, device=noisy.device))
        return made

    def unpack(self, output: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return unpack(output, size)  # (B, C, H, W)
