"""The VAEs that diffusion transformers were trained with: what diffusers' classes are asked for, and how their latents are
normalised before the noise is added. To add a class, add a subclass of ``Adapter``."""
import torch
import torch.nn.functional as F
from torch import nn


class Adapter:
    """A VAE as an encoder of images (B, C_image, H, W) into latents (B, C, H / stride, W / stride).

    A subclass registers itself by naming diffusers' class; this one suits most of them.

    Args:
        vae: diffusers' model.
    """
    known: dict[str, type['Adapter']] = {}
    memory_format = torch.channels_last  # convolutions are faster so: 1.2 times on a CPU with Stable Diffusion's encoder

    def __init_subclass__(cls, wraps: str):
        Adapter.known[wraps] = cls

    def __init__(self, vae: nn.Module):
        config = vae.config
        self.channels = config.get('latent_channels')
        self.image_channels = config.get('in_channels', 3)
        self.stride = 2 ** (len(config.get('block_out_channels', [0])) - 1)  # image pixels per latent pixel

    def posterior(self, vae: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean, which is the mode, and standard deviation of the latents, before they are normalised."""
        distribution = vae.encode(images).latent_dist
        return distribution.mode(), distribution.std

    def statistics(self, vae: nn.Module) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """Shift and factor of latents z, for all channels or (C,): the transformer sees (z - shift) * factor."""
        config = vae.config
        factor = config.get('scaling_factor', 1.0)
        mean, std = config.get('latents_mean'), config.get('latents_std')
        if mean is None or std is None:
            return config.get('shift_factor') or 0, factor
        return torch.tensor(mean, dtype=torch.float64), factor / torch.tensor(std, dtype=torch.float64)


class KL(Adapter, wraps='AutoencoderKL'):
    """Of Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752), SD3 and FLUX.1, and with a mean and a deviation per channel
    that of REPA-E (Leng et al. 2025, arXiv:2504.10483)."""


class Flux2(Adapter, wraps='AutoencoderKLFlux2'):
    """Of FLUX.2: squares of 2 x 2 latent pixels are one, normalised by the running statistics of a BatchNorm, as its pipeline
    does before it adds noise."""

    def __init__(self, vae):
        super().__init__(vae)
        self.channels, self.stride = 4 * self.channels, 2 * self.stride

    def posterior(self, vae, images):
        return tuple(F.pixel_unshuffle(one, 2) for one in super().posterior(vae, images))  # (B, 4 C, h / 2, w / 2)

    def statistics(self, vae):
        deviation = (vae.bn.running_var.double() + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean.double(), 1 / deviation


class DC(Adapter, wraps='AutoencoderDC'):
    """The deep-compression autoencoder of SANA (Chen et al. 2024, arXiv:2410.10733). It is no VAE: no deviation."""

    def __init__(self, vae):
        super().__init__(vae)
        self.stride = 2 ** (len(vae.config.encoder_block_out_channels) - 1)

    def posterior(self, vae, images):
        latent = vae.encode(images).latent
        return latent, torch.zeros_like(latent)


class QwenImage(Adapter, wraps='AutoencoderKLQwenImage'):
    """Of Qwen-Image: made for videos, of which an image is one with one frame."""
    memory_format = torch.preserve_format  # its convolutions are 3-D

    def __init__(self, vae):
        super().__init__(vae)
        self.channels, self.image_channels = vae.config.z_dim, vae.config.get('input_channels', 3)
        self.stride = 2 ** len(vae.config.temperal_downsample)

    def posterior(self, vae, images):
        return tuple(one[:, :, 0] for one in super().posterior(vae, images[:, :, None]))  # (B, C, h, w)


def adapter(vae: nn.Module) -> Adapter:
    """The adapter of diffusers' ``vae``.

    Raises:
        ValueError: None is known for its class.
    """
    name = type(vae).__name__
    if name not in Adapter.known:
        raise ValueError(f'{name} is not supported: the known VAEs are {", ".join(Adapter.known)}')
    return Adapter.known[name](vae)
