"""LightningDiT (Yao et al. 2025, arXiv:2501.01423), which diffusers does not have: a model of our own in its manner.

DiT with rotary positions beside the sin-cos ones, RMSNorm and SwiGLU; the authors' code is github.com/hustvl/LightningDiT.
Latents are those of VA-VAE, 32 channels at a sixteenth of the image's size, normalised by a mean and a deviation per channel. The
time goes from noise (0) to image (1). ``converters`` makes a folder of the published files.
"""
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

from ..reader import Blocks, names
from .base import Family
from .dit import embed_patches


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 at least (Zhang and Sennrich 2019, arXiv:1910.07467). PyTorch has it from 2.4 on."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.weight


def angles(width: int, grid: tuple[int, int], base: int, scale: str, device: torch.device) -> torch.Tensor:
    """By which rotary positions (Su et al. 2021, arXiv:2104.09864) turn the pairs of a head's ``width`` channels.

    Args:
        width, device: Of the head, and of the result.
        grid, base, scale: As of ``dit.positions``.

    Returns:
        Tensor: (h * w, width / 2), float64: the first half of the pairs encodes y, the second x.
    """
    frequencies = 10000 ** (-torch.arange(0, width // 2, 2, dtype=torch.float64, device=device) / (width // 2))
    y, x = (torch.arange(side, dtype=torch.float64, device=device)[:, None] * frequencies
            * (base / side if scale == 'interpolate' else 1) for side in grid)  # (h, width / 4), (w, width / 4)
    return torch.cat([y[:, None].expand(-1, grid[1], -1), x.expand(grid[0], -1, -1)], -1).flatten(0, 1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the pairs of neighbouring channels of (..., N, width) by angles with these (N, width / 2)."""
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([one * cos - other * sin, one * sin + other * cos], -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):

    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(width // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x, rotation):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for layer in (self.to_q, self.to_k, self.to_v))  # (B, heads, N, D / heads)
        q, k = rotate(self.norm_q(q), *rotation), rotate(self.norm_k(k), *rotation)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # (B, N, D)


class LightningDiTBlock(nn.Module):

    def __init__(self, width, heads, ffn_dim, qk_norm):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.modulation = nn.Linear(width, 6 * width)
        self.attn = Attention(width, heads, qk_norm)
        self.ff = FeedForward(width, inner_dim=ffn_dim, activation_fn='swiglu')

    def forward(self, x, condition, rotation):
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.modulation(condition)[:, None].chunk(6, -1)  # (B, 1, D) each
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, rotation)
        return x + ff_gate * self.ff(self.norm2(x) * (1 + ff_scale) + ff_shift)


class LightningDiTTransformer2DModel(ModelMixin, ConfigMixin):
    """The network; the defaults are the sizes of LightningDiT-XL/1 for images of 256 pixels.

    Args:
        num_attention_heads, attention_head_dim: Their product is the width D; the latter is a multiple of 4.
        in_channels, out_channels: Of the latents and of the prediction.
        num_layers: Blocks.
        ffn_dim: Width of the MLP between its gate and its last layer.
        sample_size: Side of the latents of the training.
        patch_size: Latent pixels per token, along a side.
        num_embeds_ada_norm: Classes, behind which the null class is.
        qk_norm: Whether queries and keys are normalised by RMS.
    """

    @register_to_config
    def __init__(self, num_attention_heads: int = 16, attention_head_dim: int = 72, in_channels: int = 32, out_channels: int = 32,
                 num_layers: int = 28, ffn_dim: int = 3072, sample_size: int = 16, patch_size: int = 1,
                 num_embeds_ada_norm: int = 1000, qk_norm: bool = False):
        super().__init__()
        self.inner_dim = width = num_attention_heads * attention_head_dim
        self.patch_embed = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(256, width)
        self.class_embedder = nn.Embedding(num_embeds_ada_norm + 1, width)
        self.transformer_blocks = nn.ModuleList(
            LightningDiTBlock(width, num_attention_heads, ffn_dim, qk_norm) for _ in range(num_layers))
        self.norm_out, self.modulation_out = RMSNorm(width), nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, patch_size**2 * out_channels)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor,
                pos_scale: str = 'interpolate', return_dict: bool = True):
        """The velocity (B, C_out, H, W) of noisy latents (B, C, H, W) at times (B,) from noise (0) to image (1)."""
        config, patch = self.config, self.config.patch_size
        grid, base = tuple(side // patch for side in hidden_states.shape[-2:]), config.sample_size // patch
        turn = angles(config.attention_head_dim, grid, base, pos_scale, hidden_states.device)
        kind = torch.promote_types(hidden_states.dtype, torch.float32)
        rotation = turn.cos().to(kind), turn.sin().to(kind)
        time = self.timestep_embedder(self.time_proj(timestep).to(hidden_states.dtype))
        condition = F.silu(time + self.class_embedder(class_labels))  # (B, D)
        x = embed_patches(self.patch_embed, hidden_states, base, pos_scale)  # (B, h * w, D)
        for block in self.transformer_blocks:
            x = block(x, condition, rotation)
        shift, scale = self.modulation_out(condition)[:, None].chunk(2, -1)
        x = self.proj_out(self.norm_out(x) * (1 + scale) + shift)  # (B, h * w, patch * patch * C_out)
        x = x.unflatten(2, (patch, patch, -1)).unflatten(1, grid)  # (B, h, w, patch, patch, C_out)
        sample = x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, C_out, H, W)
        return {'sample': sample} if return_dict else (sample,)


class LightningDiT(Family, wraps='LightningDiTTransformer2DModel'):
    """All taps of the image's tokens, which are all there are; the condition is the null class."""
    ours = LightningDiTTransformer2DModel
    kinds = (Blocks('transformer_blocks', names(attn='attn.to_out')),)
    pos_scales = ('interpolate', 'extrapolate')

    def __init__(self, model, null=None):
        super().__init__(model, null)
        self.pos_scale = 'interpolate'

    def inputs(self, noisy, time):
        labels = torch.full_like(time, self.config.num_embeds_ada_norm, dtype=torch.long)  # the row behind those of the classes
        return dict(hidden_states=noisy, timestep=time, class_labels=labels, pos_scale=self.pos_scale)
