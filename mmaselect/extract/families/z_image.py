"""Z-Image (Alibaba 2025, arXiv:2511.22699) as diffusers' ``ZImageTransformer2DModel``.

Blocks 0 and 1 are its noise refiners, which see the image alone; then come 30 blocks in which the image's tokens stand before the
text's. Each of the two is padded to a multiple of 32 tokens. The network counts time from noise (0) to image (1), takes and gives
lists of images, and the pipeline turns the sign of what it gives.
"""
import torch

from ..reader import Blocks, names
from .base import Family

TAPS = names('attention', mlp='feed_forward')


class ZImage(Family, wraps='ZImageTransformer2DModel'):
    """Taps of the image's tokens, without those that pad them."""
    kinds = Blocks('noise_refiner', TAPS, image='first'), Blocks('layers', TAPS, image='first')
    null_tokens = 8

    def __init__(self, model, null=None):
        super().__init__(model, null)
        self.width, self.patch_size = model.config.dim, model.config.all_patch_size[0]

    @staticmethod
    def null_shapes(config, tokens):
        return {'prompt_embeds': (1, tokens, config.cap_feat_dim)}

    @classmethod
    def encode_null(cls, pipeline, device):
        embeds, _ = pipeline.encode_prompt('', device=device, do_classifier_free_guidance=False)
        return {'prompt_embeds': embeds[0][None]}  # (1, L, D_text), the chat template of an empty message

    def inputs(self, noisy, time):
        self.check_grid(noisy.shape[-2:], self.config.axes_lens[1:])
        return dict(x=list(noisy[:, :, None]),  # B times (C, 1, H, W)
                    t=(1000 - time) / 1000, cap_feats=list(self.null_prompt_embeds.expand(len(noisy), -1, -1)),
                    patch_size=self.patch_size)

    def unpack(self, output, size):
        return torch.stack(list(output))[:, :, 0]  # (B, C, H, W)
