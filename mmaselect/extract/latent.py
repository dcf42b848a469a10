"""Images to latents: padding, the frozen VAE encoder, and the checks that catch a wrong data_preprocessor."""
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from .fingerprint import hash_of
from .numbers import is_count
from .vae import adapter

# Images of more pixels than this go through the VAE in parts: its first feature maps have the images' own size.
CHUNK_PIXELS = 8 * 512 * 512
DTYPES = ('float32', 'bfloat16')


class LatentEncoder(nn.Module):
    """Encodes images into the latents that a DiT was trained on; always frozen, always in evaluation mode.

    Args:
        vae (ModelMixin | None): Of a class that ``vae.Adapter`` knows. None for a DiT that works on pixels: the latent is then
            the image itself.
        patch_size (int): The DiT's patch, in latent pixels. Images are padded to whole patches.
        channels (int): Channels of the DiT's latents.
        dtype (str | None): 'float32' or 'bfloat16', in which the VAE computes; its latents leave it at least as exact as the
            images. None leaves it as it was loaded.
        chunk_pixels (int | None): At most so many image pixels go through the VAE at a time, which bounds its memory; None is
            CHUNK_PIXELS.

    Raises:
        ValueError: The VAE's latents have another number of channels than the DiT takes, the dtype is another, or chunk_pixels is
            no integer from 1 on.
    """

    def __init__(self, vae, *, patch_size, channels, dtype=None, chunk_pixels=None):
        super().__init__()
        if dtype not in (None, *DTYPES):
            reason = ": Stable Diffusion's VAEs overflow in it" if dtype == 'float16' else ''
            raise ValueError(f'the VAE computes in one of {DTYPES}, not in {dtype!r}{reason}')
        if chunk_pixels is not None and not is_count(chunk_pixels):
            raise ValueError(f'{chunk_pixels!r} image pixels at a time: an integer from 1 on, or None for {CHUNK_PIXELS}')
        self.adapter = None if vae is None else adapter(vae)
        if vae is not None and self.adapter.channels != channels:
            raise ValueError(f'the VAE makes latents of {self.adapter.channels} channels and the DiT takes {channels}: '
                             'they are not of one pipeline')
        self.vae = vae if vae is None else vae.requires_grad_(False).eval()
        if vae is not None:
            # nn.Module's since diffusers' warns.
            nn.Module.to(vae, dtype=dtype and getattr(torch, dtype), memory_format=self.adapter.memory_format)
        self.chunk_pixels = chunk_pixels
        self.image_channels = channels if vae is None else self.adapter.image_channels
        self.stride = 1 if vae is None else self.adapter.stride  # image pixels per latent pixel
        self.token_stride = self.stride * patch_size  # image pixels per token
        self._warned, self._broken = False, False

    def drop_decoder(self):
        """Frees the half of the VAE that makes images of latents, which features do not need."""
        for part in ('decoder', 'post_quant_conv'):
            if hasattr(self.vae, part):
                setattr(self.vae, part, nn.Identity())  # the encoder of Qwen-Image looks for it

    def train(self, mode=True):
        return super().train(False)

    def _apply(self, fn, *args, **kwargs):
        # half() of a whole model moves the VAE and no more, since in float16 Stable Diffusion's overflow.
        first = next(self.parameters(), None)
        if first is not None and not first.is_meta:
            there = fn(torch.empty((), dtype=first.dtype, device=first.device))
            if there.dtype == torch.float16:
                return super()._apply(lambda tensor: tensor.to(there.device), *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

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
            ValueError: Not a batch of finite images with as many channels as the VAE (or the pixel DiT) takes, or images
                smaller than one token.
        """
        return self.posterior(images)[0]

    @torch.no_grad()
    def posterior(self, images):
        """Mean, which is the mode, and standard deviation of the latents, each as ``forward`` describes them.

        A pixel DiT's latents are its images, without deviation.
        """
        if not isinstance(images, torch.Tensor):
            raise ValueError(f'images must be a tensor (B, {self.image_channels}, H, W), not {type(images).__name__}: '
                             'mmaselect.extract.inputs.to_batch makes one of pictures')
        if images.ndim != 4 or images.shape[1] != self.image_channels:
            raise ValueError(f'images must be (B, {self.image_channels}, H, W), not {tuple(images.shape)}: check the channels '
                             'that the data pipeline loads')
        self._check_values(images)
        height, width = images.shape[-2:]
        if max(height, width) < self.token_stride:
            raise ValueError(f'images of {height} x {width} pixels are below one token of {self.token_stride} x '
                             f'{self.token_stride}: scale them up')
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
        dtype = torch.promote_types(images.dtype, self.vae.dtype)
        images = images.to(self.vae.dtype, memory_format=self.adapter.memory_format)
        mean, std = (value.to(dtype, memory_format=torch.contiguous_format)  # (B, C, H/stride, W/stride)
                     for value in self.adapter.posterior(self.vae, images))
        shift, factor = (value.to(mean)[:, None, None] if isinstance(value, torch.Tensor) else value  # (C, 1, 1) or a number
                         for value in self.adapter.statistics(self.vae))
        return (mean - shift) * factor, std * factor

    def fingerprint(self):
        """A hash of all that the latents of an image depend on; None for a pixel DiT, whose latents are its images."""
        if self.vae is None:
            return None
        statistics = [value.tolist() if isinstance(value, torch.Tensor) else value for value in self.adapter.statistics(self.vae)]
        about = type(self.vae).__name__, statistics, self.token_stride, str(self.vae.dtype)
        return hash_of({name: value for name, value in self.vae.state_dict().items()
                        if name.startswith(('encoder.', 'quant_conv.'))}, repr(about))  # not the decoder, which may be gone

    def _check_values(self, images):
        """Raises ValueError where there are no images, or values that are none; warns once of another range."""
        if not images.is_floating_point():
            raise ValueError(f'images are floating point in [-1, 1], and these are {images.dtype}: a data_preprocessor makes '
                             'them of pixels from 0 to 255, or mmaselect.extract.inputs.to_batch')
        if not images.numel():
            raise ValueError(f'images are {tuple(images.shape)}: there must be at least one, of one pixel or more')
        # On a GPU what was found of one batch is read at the next, so that nothing waits for it.
        broken, self._broken = self._broken, ~images.isfinite().all()
        if self._broken if images.device.type == 'cpu' else broken:
            self._broken = False
            raise ValueError('images have values that are not finite: look for broken files and for a std of 0 in the '
                             'data_preprocessor')
        if self._warned:  # the data_preprocessor is the same for all batches
            return
        self._warned = True
        low, high = images.aminmax()
        if low < -1.01 or high > 1.01 or low >= 0:
            warnings.warn(f'images range over [{low:.3g}, {high:.3g}] and a DiT expects [-1, 1]: set mean=[127.5]*3 and '
                          'std=[127.5]*3 in the data_preprocessor', stacklevel=4)
