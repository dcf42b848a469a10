"""Draws of the noise, and features averaged over several of them."""
import torch

from .noise import noise_canvas

# Draws share a forward pass up to so many tokens: small images fill the machine, and large ones still fit into its memory.
PASS_TOKENS = 2**14
SIDE = 64  # of a model whose config says nothing: latents of 512 pixels


def check_noise(noise, draws):
    """Raises ValueError for an unknown kind of noise, no draw, or several draws of none."""
    if noise not in ('seeded', 'random', 'none'):
        raise ValueError(f"noise is 'seeded', 'random' or 'none', not {noise!r}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1 or (noise == 'none' and draws > 1):
        raise ValueError(f'{draws} draws of noise {noise!r}: there must be at least one, and without noise no more')


def draw(latent: torch.Tensor, noise: str = 'seeded', seed: int = 0, draws: int = 1, *,
         side: int = SIDE) -> list[torch.Tensor | None]:
    """Noise for clean latents.

    Args:
        latent (Tensor): (B, C, H, W).
        noise (str): 'seeded' depends on the latent's channels, ``seed`` and the number of the draw alone and is the same for
            every image, cut from one plane for all sizes; 'random' comes afresh from torch's global generator; 'none' is none.
        seed (int): For 'seeded'.
        draws (int): How many.
        side (int): Of the squares that the plane is made of: the latents of the model's training; see ``noise.noise_canvas``.

    Returns:
        list[Tensor | None]: Per draw (1 or B, C, H, W), or None for 'none'.

    Raises:
        ValueError: As ``check_noise``.
    """
    check_noise(noise, draws)
    if noise == 'seeded':
        # The first draw has no number, so that it is what it is where there is only one.
        return [noise_canvas(latent.shape[1:], side, seed, *([k] if k else []))[None].to(latent.device)  # (1, C, H, W)
                for k in range(draws)]
    if noise == 'random':
        return [torch.randn_like(latent) for _ in range(draws)]
    return [None]


def average(features, latent, t, noises, tokens):
    """Features averaged over draws of the noise, as DIFT does (Tang et al. 2023, arXiv:2306.03881).

    Args:
        features (Callable): (latent, t, noise) -> maps; see ``Extractor.features``.
        latent (Tensor): (B, C, H, W).
        t (int | Tensor): One for all or (B,).
        noises (Sequence[Tensor | None]): As ``draw`` gives them. A single one is used as it is.
        tokens (int): Of the latents together, by which is decided how many draws share a forward pass.

    Returns:
        tuple[Tensor]: Per tap (B, D, h, w).
    """
    if len(noises) == 1:
        return features(latent, t, noises[0])
    t, sums = torch.as_tensor(t).reshape(-1), 0
    size = max(1, PASS_TOKENS // tokens)  # draws per forward pass
    for first in range(0, len(noises), size):
        part = noises[first:first + size]
        many = torch.cat([noise.expand_as(latent) for noise in part])  # (draws B, C, H, W)
        times = t if len(t) == 1 else t.repeat(len(part))
        maps = features(latent.repeat(len(part), 1, 1, 1), times, many)
        totals = [m.unflatten(0, (len(part), -1)).sum(0) for m in maps]  # each (B, D, h, w)
        sums = totals if first == 0 else [a + b for a, b in zip(sums, totals, strict=True)]
    return tuple(s / len(noises) for s in sums)
