"""Image -> latent -> noisy latent -> blocks -> maps of features."""
import torch
from torch import nn

from . import loading
from .draws import average, draw
from .families import family_of
from .latent import LatentEncoder
from .noise import NoiseProcess
from .taps import resolve


class FeatureExtractor(nn.Module):
    """Features of images from the blocks of a diffusion transformer at a timestep.

    Args:
        parts (Parts): Transformer, VAE, noise process and null prompt, from ``loading``.
        taps (Sequence[tuple[int, str]]): What to read, as (block, name); see ``taps.TAPS`` for the names.
        pos_scale (str | None): Positions on grids of other sizes than the training's. 'interpolate' stretches the grid over the
            training's, each side on its own; 'extrapolate' keeps the training's distance between tokens and goes on beyond its
            end; see ``families.dit.positions``. None is the family's own way, for DiT 'interpolate'.

    Raises:
        ValueError: Taps or positions that the model does not have, or parts that do not fit each other.
    """

    def __init__(self, parts, taps=((-1, 'hidden'),), pos_scale=None):
        super().__init__()
        self.family = family_of(parts.transformer, parts.null)
        if pos_scale is not None:
            choices = getattr(self.family, 'pos_scales', ())
            if pos_scale not in choices:
                raise ValueError(f'pos_scale of {type(parts.transformer).__name__} is None or one of {choices}, not '
                                 f'{pos_scale!r}')
            self.family.pos_scale = pos_scale
        self.encoder = LatentEncoder(parts.vae, patch_size=self.family.patch_size, channels=self.family.in_channels)
        self.process: NoiseProcess = parts.process
        self.set_taps(taps)

    @classmethod
    def from_pretrained(cls, source, taps=((-1, 'hidden'),), pos_scale=None):
        """An extractor of a checkpoint folder or hub id in DiTPipeline layout; see ``loading.from_pretrained``."""
        return cls(loading.from_pretrained(source), taps, pos_scale)

    @classmethod
    def from_arch(cls, arch, taps=((-1, 'hidden'),), pos_scale=None):
        """An extractor with random weights; see ``loading.from_arch``."""
        return cls(loading.from_arch(arch), taps, pos_scale)

    def set_taps(self, taps):
        """Reads these (block, name) from now on.

        Raises:
            ValueError: The model has no such taps.
        """
        self.taps = resolve(taps, self.family.depth)

    @property
    def channels(self):
        """Channels of each tap, in their order."""
        return [self.family.width] * len(self.taps)

    @property
    def token_stride(self):
        """Image pixels per cell of a feature map."""
        return self.encoder.token_stride

    def used_parameters(self):
        """Parameters of the transformer that the taps depend on: those that a fine-tuning trains.

        Found by asking autograd on a single token, so that it holds for every family and tap.
        """
        parameters = [p.requires_grad_(True) for p in self.family.parameters()]
        side = self.family.patch_size
        latent = parameters[0].new_zeros(1, self.family.in_channels, side, side)
        with torch.enable_grad():
            total = sum(m.float().sum() for m in self.features(latent, 0, None))
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        return [p for p, grad in zip(parameters, grads, strict=True) if grad is not None]

    def forward(self, images, t, noise='seeded', seed=0, draws=1):
        """Features of images, which are encoded once for all timesteps and draws.

        Args:
            images (Tensor): (B, 3, H, W) in [-1, 1].
            t (int | Tensor | Sequence[int]): Timestep, 0 the cleanest; one for all, a tensor (B,) of one per image, or a list or
                tuple of several for all, one forward pass each, with the same noise.
            noise (str): 'seeded' depends on the latent's shape and ``seed`` alone and is the same for every image;
                'random' is drawn afresh from torch's global generator; 'none' only scales the clean latent.
            seed (int): For 'seeded'.
            draws (int): The features are averaged over so many draws of the noise.

        Returns:
            tuple[Tensor]: Per timestep and tap (B, D, h, w), one cell per ``token_stride`` pixels, rounded up: all taps of the
                first timestep, then all of the second, and so on.

        Raises:
            ValueError: Wrong images, timesteps, kind of noise or number of draws.
        """
        latent = self.encoder(images)  # (B, C, H/stride, W/stride)
        noises = draw(latent, noise, seed, draws)
        tokens = latent[:, 0].numel() // self.family.patch_size ** 2
        return tuple(m for one in (t if isinstance(t, (list, tuple)) else [t])
                     for m in average(self.features, latent, one, noises, tokens))

    def features(self, latent, t, noise):
        """Features of clean latents.

        Args:
            latent (Tensor): (B, C, H, W), as ``encoder`` gives them.
            t (int | Tensor): Timestep, 0 the cleanest; one for all or (B,).
            noise (Tensor | None): (B or 1, C, H, W); None only scales the clean latent.

        Returns:
            tuple[Tensor]: Per tap (B, D, h, w).
        """
        t = torch.as_tensor(t).reshape(-1).cpu()  # (1,) or (B,); the tables of the process are on the CPU
        if t.is_floating_point() or t.min() < 0 or t.max() >= len(self.process):
            raise ValueError(f'timesteps are integers in [0, {len(self.process) - 1}], 0 the cleanest; got {t.tolist()}')
        noisy = self.process.add(latent, t, noise)
        state = self.family.embed(noisy.to(next(self.family.parameters()).dtype))
        last = self.taps[-1][0]
        condition = self.family.condition(self.process.model_time[t].to(latent.device, torch.float32), last + 1)
        grid = [side // self.family.patch_size for side in latent.shape[-2:]]
        maps = []
        for index in range(last + 1):
            wanted = [name for block, name in self.taps if block == index]
            need = set(wanted) if index == last else {*wanted, 'hidden'}
            taps, state = self.family.block(index, state, condition, need)
            maps += [taps[name].transpose(1, 2).unflatten(2, grid) for name in wanted]  # (B, D, h, w)
        return tuple(maps)
