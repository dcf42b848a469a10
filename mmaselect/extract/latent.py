"""Images to latents: padding, the frozen VAE encoder, and the checks that catch a wrong data_preprocessor."""
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

# Images of more pixels than this go through the VAE in parts: its first feature maps have the images' own size.
CHUNK_PIXELS = 8 * 512 * 512


class LatentEncoder(nn.Module):
    """Encodes images into the latents that a DiT was trained on; always frozen, always in evaluation mode.

    Args:
        vae (AutoencoderKL | None): None for a DiT that works on pixels: the latent is then the image itself.
        patch_size (int): The DiT's patch, in latent pixels. Images are padded to whole patches.
        channels (int): Channels of the DiT's input.

    Raises:
        ValueError: The VAE's latents have another number of channels than the DiT takes.
    """

    def __init__(self, vae, *, patch_size, channels):
        super().__init__()
        if vae is not None and vae.config.latent_channels != channels:
            raise ValueError(f'the VAE makes latents of {vae.config.latent_channels} channels and the DiT takes {channels}: '
                             'they are not of one pipeline')
        self.vae = vae if vae is None else vae.requires_grad_(False).eval()
        self.image_channels = channels if vae is None else vae.config.in_channels
        self.stride = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)  # image pixels per latent pixel
        self.token_stride = self.stride * patch_size  # image pixels per token
        self._warned = False

    def drop_decoder(self):
        """Frees the half of the VAE that makes images of latents, which features do not need."""
        for part in ('decoder', 'post_quant_conv'):
            if hasattr(self.vae, part):
                delattr(self.vae, part)

    def train(self, mode=True):
        return super().train(False)

    def grid(self, height, width):
        """Tokens (h, w) of an image of this size in pixels: every token that sees a part of the image."""
        return math.ceil(height / self.token_stride), math.ceil(width / self.token_stride)

    @torch.no_grad()
    def forward(self, images):
        """Latents of images.

        Args:
            images (Tensor): (B, 3, H, W) in [-1, 1]. Sizes that are not whole tokens are padded at the right and the
                bottom by repeating the border.

        Returns:
            Tensor: (B, C, H/stride, W/stride): the mode of the VAE's posterior, shifted and scaled as the DiT saw it.

        Raises:
            ValueError: Not a batch of images with as many channels as the VAE (or the pixel DiT) takes.
        """
        if images.ndim != 4 or images.shape[1] != self.image_channels:
            raise ValueError(f'images must be (B, {self.image_channels}, H, W), not {tuple(images.shape)}: check the channels '
                             'that the data pipeline loads')
        self._check_range(images)
        height, width = images.shape[-2:]
        h, w = self.grid(height, width)
        pad = (0, w * self.token_stride - width, 0, h * self.token_stride - height)
        if any(pad):
            images = F.pad(images, pad, mode='replicate')  # (B, 3, h * token_stride, w * token_stride)
        if self.vae is None:
            return images
        chunk = max(1, CHUNK_PIXELS // (images.shape[-2] * images.shape[-1]))  # images at a time
        # Not under AMP: Stable Diffusion's VAEs overflow in float16.
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self.encode(part) for part in images.split(chunk)])  # (B, C, H/stride, W/stride)

    def encode(self, images):
        """Latents of images that need no padding, all at once."""
        config = self.vae.config
        latent = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()  # (B, C, H/stride, W/stride)
        return (latent - (getattr(config, 'shift_factor', None) or 0)) * config.scaling_factor

    def _check_range(self, images):
        # Looked at once: the check reads values back from the GPU, and the data_preprocessor is the same for all batches.
        if self._warned or not images.numel():
            return
        self._warned = True
        low, high = images.aminmax()
        if low < -1.01 or high > 1.01 or low >= 0:
            warnings.warn(f'images range over [{low:.3g}, {high:.3g}] and a DiT expects [-1, 1]: set mean=[127.5]*3 and '
                          'std=[127.5]*3 in the data_preprocessor', stacklevel=3)
