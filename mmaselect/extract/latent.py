"""Images to latents: padding, the frozen VAE encoder, and the checks that catch a wrong data_preprocessor."""
import hashlib
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

# Images of more pixels than this go through the VAE in parts: its first feature maps have the images' own size.
CHUNK_PIXELS = 8 * 512 * 512
DTYPES = ('float32', 'bfloat16')


class LatentEncoder(nn.Module):
    """Encodes images into the latents that a DiT was trained on; always frozen, always in evaluation mode.

    Args:
        vae (AutoencoderKL | None): None for a DiT that works on pixels: the latent is then the image itself.
        patch_size (int): The DiT's patch, in latent pixels. Images are padded to whole patches.
        channels (int): Channels of the DiT's input.
        dtype (str | None): 'float32' or 'bfloat16', in which the VAE computes; its latents leave it at least as exact as the
            images. None leaves it as it was loaded.
        chunk_pixels (int | None): At most so many image pixels go through the VAE at a time, which bounds its memory; None is
            CHUNK_PIXELS.

    Raises:
        ValueError: The VAE's latents have another number of channels than the DiT takes, or the dtype is another.
    """

    def __init__(self, vae, *, patch_size, channels, dtype=None, chunk_pixels=None):
        super().__init__()
        if dtype not in (None, *DTYPES):
            reason = ": Stable Diffusion's VAEs overflow in it" if dtype == 'float16' else ''
            raise ValueError(f'the VAE computes in one of {DTYPES}, not in {dtype!r}{reason}')
        if vae is not None and vae.config.latent_channels != channels:
            raise ValueError(f'the VAE makes latents of {vae.config.latent_channels} channels and the DiT takes {channels}: '
                             'they are not of one pipeline')
        self.vae = vae if vae is None else vae.requires_grad_(False).eval()
        if vae is not None:
            # Convolutions are faster so: 1.2 times on a CPU with Stable Diffusion's encoder. nn.Module's since diffusers' warns.
            nn.Module.to(vae, dtype=dtype and getattr(torch, dtype), memory_format=torch.channels_last)
        self.chunk_pixels = chunk_pixels
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
        return self.posterior(images)[0]

    @torch.no_grad()
    def posterior(self, images):
        """Mean, which is the mode, and standard deviation of the latents, each as ``forward`` describes them.

        A pixel DiT's latents are its images, without deviation.
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
            return images, torch.zeros_like(images)
        chunk = max(1, (self.chunk_pixels or CHUNK_PIXELS) // (images.shape[-2] * images.shape[-1]))  # images at a time
        # Not under AMP: Stable Diffusion's VAEs overflow in float16.
        with torch.autocast(images.device.type, enabled=False):
            parts = [self._encode(part) for part in images.split(chunk)]
        mean, std = (torch.cat(values) for values in zip(*parts, strict=True))  # (B, C, H/stride, W/stride)
        return mean, std

    def encode(self, images):
        """Latents of images that need no padding, all at once."""
        return self._encode(images)[0]

    def _encode(self, images):
        """As ``posterior``, of images that need no padding, all at once."""
        config = self.vae.config
        dtype = torch.promote_types(images.dtype, self.vae.dtype)
        posterior = self.vae.encode(images.to(self.vae.dtype, memory_format=torch.channels_last)).latent_dist
        mean, std = (value.to(dtype, memory_format=torch.contiguous_format)  # (B, C, H/stride, W/stride)
                     for value in (posterior.mode(), posterior.std))
        return (mean - (getattr(config, 'shift_factor', None) or 0)) * config.scaling_factor, std * config.scaling_factor

    def fingerprint(self):
        """A hash of all that the latents of an image depend on; None for a pixel DiT, whose latents are its images."""
        if self.vae is None:
            return None
        config = self.vae.config
        about = config.scaling_factor, getattr(config, 'shift_factor', None), self.token_stride, str(self.vae.dtype)
        digest = hashlib.blake2b(repr(about).encode(), digest_size=16)
        for name, value in sorted(self.vae.state_dict().items()):
            if name.startswith(('encoder.', 'quant_conv.')):  # not the decoder, which may be gone
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _check_range(self, images):
        # Looked at once: the check reads values back from the GPU, and the data_preprocessor is the same for all batches.
        if self._warned or not images.numel():
            return
        self._warned = True
        low, high = images.aminmax()
        if low < -1.01 or high > 1.01 or low >= 0:
            warnings.warn(f'images range over [{low:.3g}, {high:.3g}] and a DiT expects [-1, 1]: set mean=[127.5]*3 and '
                          'std=[127.5]*3 in the data_preprocessor', stacklevel=3)
