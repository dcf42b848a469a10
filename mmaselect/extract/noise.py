"""The forward (noising) process of a checkpoint, on one clock for every family.

Time is an integer training timestep t in [0, T): t=0 is the cleanest, t=T-1 the noisiest. What each family calls time is
turned into this here and nowhere else.
"""
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NoiseProcess:
    """x_t = signal[t] * x_0 + sigma[t] * eps, with eps of unit variance.

    Args:
        signal (Tensor): (T,) float64, the factor of the clean latent.
        sigma (Tensor): (T,) float64, the factor of the noise: the noise level.
        model_time (Tensor): (T,) float64, what the network is given as its time at t.
    """
    signal: torch.Tensor
    sigma: torch.Tensor
    model_time: torch.Tensor

    @classmethod
    def from_scheduler(cls, scheduler) -> 'NoiseProcess':
        """The process of a diffusers scheduler: flow matching (shifted noise levels) or DDPM-like (``alphas_cumprod``).

        Flow matching mixes x_t = (1 - sigma) x_0 + sigma eps (Lipman et al. 2023, arXiv:2210.02747; SD3, arXiv:2403.03206,
        section 3.1), with the scheduler's own static shift. A dynamic shift depends on the size of what is sampled, and decides
        which levels are visited, not what a level is: t is then the level without a shift, and means the same for all sizes.
        Times are those of the scheduler's own ``timesteps``, sigma * T, of which each pipeline makes what its network takes (see
        ``Family.inputs``), unless the config has ``_model_time``, a key of ours that diffusers keeps and ignores: 'sigma', the
        share of the noise (REPA), or 'signal', that of the image (SiT, arXiv:2401.08740, whose t=1 is clean).

        Raises:
            ValueError: The scheduler has neither, so it does not define a noise process, its ``_model_time`` is unknown, or it
                turns the levels around.
        """
        config, name = scheduler.config, type(scheduler).__name__
        steps = config.get('num_train_timesteps')
        # Solvers such as DPMSolverMultistep do both: their alphas_cumprod is there in any case.
        if config.get('use_flow_sigmas'):
            shift = config.get('flow_shift') or 1
        elif 'shift' in config and hasattr(scheduler, 'sigmas') and not hasattr(scheduler, 'alphas_cumprod'):
            shift = 1 if config.get('use_dynamic_shifting') else config['shift']
        elif config.get('prediction_type') == 'flow_prediction':
            raise ValueError(f'{name} predicts a flow and has no use_flow_sigmas, so that its levels are those of DDPM: set '
                             'use_flow_sigmas in its config')
        elif hasattr(scheduler, 'alphas_cumprod'):
            kept = scheduler.alphas_cumprod.double()  # (T,), DDPM eq. 4 (arXiv:2006.11239)
            return cls(kept.sqrt(), (1 - kept).sqrt(), torch.arange(steps, dtype=torch.float64))
        else:
            raise ValueError(f'{name} has neither alphas_cumprod nor shifted sigmas, so it defines no noise process: put a DDPM, '
                             'DDIM or FlowMatchEulerDiscrete scheduler into scheduler/')
        if config.get('invert_sigmas'):
            raise ValueError(f'{name} has invert_sigmas, which turns its levels around: noise would be taken for the image')
        sigma = torch.arange(1, steps + 1, dtype=torch.float64) / steps  # the scheduler counts down, t counts up
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        times = {None: sigma * steps, 'sigma': sigma, 'signal': 1 - sigma}
        kind = config.get('_model_time')
        if kind not in times:
            raise ValueError(f"_model_time is 'sigma' or 'signal', not {kind!r}")
        return cls(1 - sigma, sigma, times[kind])

    def __len__(self):
        return len(self.sigma)

    def add(self, latent, t, noise):
        """The noisy latent at t.

        Args:
            latent (Tensor): (B, C, h, w).
            t (Tensor): (B,) integer timesteps, 0 the cleanest, on the CPU or where this process' tables are.
            noise (Tensor | None): (B or 1, C, h, w) of unit variance; None only scales the clean latent.

        Returns:
            Tensor: (B, C, h, w), in the dtype of ``latent``.
        """
        signal, sigma = (table[t].to(latent)[:, None, None, None] for table in (self.signal, self.sigma))  # (B, 1, 1, 1)
        return signal * latent if noise is None else signal * latent + sigma * noise.to(latent)

    def log_snr(self, t):
        """log(signal^2 / sigma^2) at an integer t; inf where there is no noise, -inf where there is no signal."""
        signal, sigma = self.signal[t].item(), self.sigma[t].item()
        if signal == 0 or sigma == 0:
            return math.inf if sigma == 0 else -math.inf
        return 2 * (math.log(signal) - math.log(sigma))


def mix(*seeds):
    """One seed from several integers, such that neighbours share nothing: the same on every machine and version."""
    return int.from_bytes(hashlib.blake2b(repr(seeds).encode(), digest_size=8).digest(), 'big') >> 1


def seeded_noise(shape, *seeds):
    """Unit Gaussian noise of ``shape``, float32 on the CPU, that depends on the shape and the seeds alone.

    Drawn on the CPU whatever the device, so that a GPU and a CPU see the same noise.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(mix(*seeds)), device='cpu')


def noise_canvas(shape: Sequence[int], side: int, *seeds) -> torch.Tensor:
    """As ``seeded_noise``, of (C, H, W), cut from one plane, so that latents of all sizes have the same noise where they overlap.

    The plane is of squares of ``side``, each with noise of its own; that in the corner is ``seeded_noise`` of these seeds.
    """
    channels, height, width = shape
    rows = [torch.cat([seeded_noise((channels, side, side), *seeds, *([y, x, 'square'] if y or x else []))
                       for x in range(-(-width // side))], dim=2) for y in range(-(-height // side))]
    return torch.cat(rows, dim=1)[:, :height, :width]  # (C, H, W)
