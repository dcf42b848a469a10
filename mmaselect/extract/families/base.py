"""What the families share: how they register, the sizes of a model, the buffers of its null condition, and attention."""
import torch.nn.functional as F
from torch import nn


class Family(nn.Module):
    """A diffusion transformer, one block at a time. See the package's docstring for the interface.

    A subclass registers itself by naming diffusers' class: ``class DiT(Family, wraps='DiTTransformer2DModel')``.

    Args:
        model (diffusers.ModelMixin): The transformer.
        null (dict[str, Tensor] | None): The null condition. It becomes the buffers ``null_<name>``, so that checkpoints carry it.
    """
    known = {}
    null_tokens = 0

    def __init_subclass__(cls, wraps, **kwargs):
        super().__init_subclass__(**kwargs)
        Family.known[wraps] = cls

    def __init__(self, model, null=None):
        super().__init__()
        self.model, self.config = model, model.config
        self.depth = len(model.transformer_blocks)
        self.width = model.inner_dim
        self.patch_size = self.config.patch_size
        self.in_channels = self.config.in_channels
        self.heads = self.config.num_attention_heads
        for name, value in (null or {}).items():
            self.register_buffer(f'null_{name}', value.to(model.device, model.dtype))

    @staticmethod
    def null_shapes(config, tokens):
        return {}

    def split(self, x):
        """(B, N, D) -> (B, heads, N, D / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def project(self, attention, modulated, need):
        """The taps up to the attention: its input (B, N, D), and of its three projections those that are needed."""
        taps, whole = {'modulated': modulated}, need & {'attn', 'mlp', 'hidden'}
        for name, project in (('query', attention.to_q), ('key', attention.to_k), ('value', attention.to_v)):
            if name in need or whole:
                taps[name] = project(modulated)
        return taps

    def attend(self, attention, taps):
        """The tap 'attn' (B, N, D) of attention over these projections alone."""
        heads = [self.split(taps[name]) for name in ('query', 'key', 'value')]  # (B, heads, N, D / heads)
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)  # (B, N, D)
        return attention.to_out[0](mixed)

    def unpatchify(self, patches, grid):
        """(B, h * w, p * p * C) of a grid (h, w) -> (B, C, h * p, w * p)."""
        patches = patches.unflatten(1, grid).unflatten(3, (self.patch_size, self.patch_size, -1))  # (B, h, w, p, p, C)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, C, h * p, w * p)
