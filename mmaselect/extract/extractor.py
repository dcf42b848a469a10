"""Image -> latent -> noisy latent -> blocks -> maps of features."""
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from packaging.version import Version
from torch import nn

from . import loading
from .draws import SIDE, average, draw
from .families import family_of
from .fold import fold
from .latent import LatentEncoder
from .noise import NoiseProcess
from .numbers import several
from .taps import resolve


class Extractor(nn.Module):
    """Features of images from the blocks of a diffusion transformer at a timestep.

    Args:
        parts (Parts): Transformer, VAE, noise process and null prompt, from ``loading``.
        taps (Sequence[tuple[int, str]]): What to read, as (block, name); see ``taps.TAPS`` for the names.
        pos_scale (str | None): Positions on grids of other sizes than the training's. 'interpolate' stretches the grid over the
            training's, each side on its own; 'extrapolate' keeps the training's distance between tokens and goes on beyond its
            end; see ``families.dit.positions``. None is the family's own way, for DiT 'interpolate'.
        vae_dtype, chunk_pixels: ``dtype`` and ``chunk_pixels`` of the ``LatentEncoder``.

    Raises:
        ValueError: Taps or positions that the model does not have, or parts that do not fit each other.
    """

    def __init__(self, parts: loading.Parts, taps: Sequence[tuple[int, str]] = ((-1, 'hidden'),), pos_scale: str | None = None, *,
                 vae_dtype: str | None = None, chunk_pixels: int | None = None):
        super().__init__()
        self.family = family_of(parts.transformer, parts.null)
        if pos_scale is not None:
            if pos_scale not in self.family.pos_scales:
                raise ValueError(f'pos_scale of {type(parts.transformer).__name__} is None or one of {self.family.pos_scales}, '
                                 f'not {pos_scale!r}')
            self.family.pos_scale = pos_scale
        self.encoder = LatentEncoder(parts.vae, patch_size=self.family.patch_size, channels=self.family.in_channels,
                                     dtype=vae_dtype, chunk_pixels=chunk_pixels)
        self.process: NoiseProcess = parts.process
        self._compiled = None  # compiles a function, the same one once
        self.checkpointing = False  # whether a backward pass computes the blocks anew instead of remembering their inside
        self.set_taps(taps)

    @classmethod
    def from_pretrained(cls, source: str | Path, taps: Sequence[tuple[int, str]] = ((-1, 'hidden'),),
                        pos_scale: str | None = None, *, vae_dtype: str | None = None, chunk_pixels: int | None = None,
                        **options) -> 'Extractor':
        """An extractor of a checkpoint folder or hub id in DiTPipeline layout. ``options`` are ``variant``, ``revision``,
        ``dtype`` and ``single_file`` of ``loading.from_pretrained``."""
        return cls(loading.from_pretrained(source, **options), taps, pos_scale, vae_dtype=vae_dtype, chunk_pixels=chunk_pixels)

    @classmethod
    def from_arch(cls, arch: dict, taps: Sequence[tuple[int, str]] = ((-1, 'hidden'),), pos_scale: str | None = None, *,
                  vae_dtype: str | None = None, chunk_pixels: int | None = None) -> 'Extractor':
        """An extractor with random weights; see ``loading.from_arch``."""
        return cls(loading.from_arch(arch), taps, pos_scale, vae_dtype=vae_dtype, chunk_pixels=chunk_pixels)

    def set_taps(self, taps):
        """Reads these (block, name) from now on.

        Raises:
            ValueError: The model has no such taps, or they were folded away.
        """
        taps = resolve(taps, self.family.depth)
        self.family.check(taps)
        self.taps = taps

    @property
    def timesteps(self):
        """Those that the transformer is folded at, or None where it is not and all are possible."""
        return self.family.timesteps

    def fold(self, timesteps, *, into='norm'):
        """Replaces the transformer by the ViT that it is at these timesteps, for the taps of now; see ``fold.fold``.

        Raises:
            ValueError: As ``fold.fold``, or timesteps outside the schedule.
        """
        self._checked(timesteps)
        self.family = fold(self.family, self.process, timesteps, self.taps, into=into)
        return self

    def compile(self, **options):
        """Compiles the blocks by ``torch.compile`` with these options; nn.Module's own method would take in the VAE too.

        A folded DiT's blocks are compiled together. Of another transformer each kind of block is compiled once, and blocks that
        have other taps than 'hidden' are not. Names of parameters stay as they are, and copies share what was compiled.

        Raises:
            RuntimeError: PyTorch is older than 2.5: its compiler makes a graph for each block, and gives up after eight.
        """
        if Version(torch.__version__) < Version('2.5'):
            raise RuntimeError(f'compiling the blocks needs PyTorch 2.5 or newer, and this is {torch.__version__}: leave compile '
                               'at False')
        self._compiled = functools.lru_cache(functools.partial(torch.compile, **options))

    def _checked(self, t):
        """Timesteps as a tensor (T,) of integers on the CPU."""
        try:
            given = torch.as_tensor(t).reshape(-1).cpu()  # the tables of the process are on the CPU
        except (TypeError, ValueError, RuntimeError):
            given = None
        if (given is None or not given.numel() or given.is_floating_point() or given.is_complex() or given.dtype == torch.bool
                or given.min() < 0 or given.max() >= len(self.process)):
            raise ValueError(f'timesteps are integers in [0, {len(self.process) - 1}], 0 the cleanest; got '
                             f'{t.tolist() if isinstance(t, torch.Tensor) else t!r}')
        return given

    @property
    def channels(self):
        """Channels of each tap, in their order."""
        return [self.family.channels(tap) for tap in self.taps]

    @property
    def token_stride(self):
        """Image pixels per cell of a feature map."""
        return self.encoder.token_stride

    def used_parameters(self):
        """Parameters of the transformer that the taps depend on: those that a fine-tuning trains.

        Found by asking autograd on a single token, so that it holds for every family and tap. After folding, those of every
        timestep.
        """
        parameters = [p.requires_grad_(True) for p in self.family.parameters()]
        side = self.family.patch_size
        latent = parameters[0].new_zeros(1, self.family.in_channels, side, side)
        with torch.enable_grad():
            total = sum(m.float().sum() for t in self.timesteps or (0,) for m in self.features(latent, t, None))
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        return [p for p, grad in zip(parameters, grads, strict=True) if grad is not None]

    def forward(self, images: torch.Tensor, t: int | torch.Tensor | Sequence[int], noise: str = 'seeded', seed: int = 0,
                draws: int = 1) -> tuple[torch.Tensor, ...]:
        """Features of images, which are encoded once for all timesteps and draws.

        Args:
            images (Tensor): (B, 3, H, W) in [-1, 1].
            t (int | Tensor | Sequence[int]): Timestep, 0 the cleanest; one for all, a tensor (B,) of one per image, or a list or
                tuple of several for all, one forward pass each, with the same noise.
            noise (str): 'seeded' depends on the latent's channels and ``seed`` alone, is the same for every image, and is cut
                from one plane for all sizes;
                'random' is drawn afresh from torch's global generator; 'none' only scales the clean latent.
            seed (int): For 'seeded'.
            draws (int): The features are averaged over so many draws of the noise.

        Returns:
            tuple[Tensor]: Per timestep and tap (B, D, h, w), one cell per ``token_stride`` pixels, rounded up: all taps of the
                first timestep, then all of the second, and so on.

        Raises:
            ValueError: Wrong images, timesteps, kind of noise or number of draws.
        """
        return self.from_latents(self.encoder(images), t, noise, seed, draws)

    def from_latents(self, latent: torch.Tensor, t: int | torch.Tensor | Sequence[int], noise: str = 'seeded', seed: int = 0,
                     draws: int = 1) -> tuple[torch.Tensor, ...]:
        """As ``forward``, of latents (B, C, H/stride, W/stride) that ``encoder`` gave.

        Raises:
            ValueError: Wrong latents, timesteps, kind of noise or number of draws.
        """
        channels, patch = self.family.in_channels, self.family.patch_size
        if latent.ndim != 4 or latent.shape[1] != channels or any(side % patch for side in latent.shape[2:]):
            raise ValueError(f'latents must be (B, {channels}, h, w) of whole patches of {patch}, not {tuple(latent.shape)}')
        if not len(latent):
            raise ValueError('there are no latents: a batch has at least one')
        timesteps = several(t)
        if not timesteps:
            raise ValueError('no timesteps were given')
        noises = self.draw(latent, noise, seed, draws)
        tokens = latent[:, 0].numel() // patch ** 2
        return tuple(m for one in timesteps for m in average(self.features, latent, one, noises, tokens))

    def draw(self, latent, noise='seeded', seed=0, draws=1):
        """The noise that ``from_latents`` adds to these latents; see ``draws.draw``."""
        return draw(latent, noise, seed, draws, side=self.family.config.get('sample_size') or SIDE)

    def features(self, latent: torch.Tensor, t: int | torch.Tensor, noise: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Features of clean latents.

        Args:
            latent (Tensor): (B, C, H, W), as ``encoder`` gives them.
            t (int | Tensor): Timestep, 0 the cleanest; one for all or (B,).
            noise (Tensor | None): (B or 1, C, H, W); None only scales the clean latent.

        Returns:
            tuple[Tensor]: Per tap (B, D, h, w).

        Raises:
            ValueError: Timesteps outside the schedule, or others than those that the transformer is folded at.
        """
        t = self._checked(t)  # (1,) or (B,)
        if len(t) not in (1, len(latent)):
            raise ValueError(f'{len(t)} timesteps for {len(latent)} latents: give one for all, or one each')
        noisy = self.process.add(latent, t, noise)
        grid = [side // self.family.patch_size for side in latent.shape[-2:]]
        tokens = self.family.read(noisy, self._time(t), self.taps, compiled=self._compiled,
                                  checkpointing=self.checkpointing and torch.is_grad_enabled())  # per tap (B, N, D)
        return tuple(one.transpose(1, 2).unflatten(2, grid) for one in tokens)  # (B, D, h, w)

    def _time(self, t):
        """What the family is told of the timesteps (1,) or (B,): the network's times, or their places among those of the fold."""
        if self.timesteps is None:
            return self.process.model_time[t].float()
        missing = set(t.tolist()) - set(self.timesteps)
        if missing:
            folded, others = (', '.join(map(str, ts)) for ts in (self.timesteps, sorted(missing)))
            raise ValueError(f'this transformer is folded at t={folded} and cannot run at t={others}: fold it at all timesteps '
                             'that are wanted, or load it anew')
        return [self.timesteps.index(k) for k in t.tolist()]
