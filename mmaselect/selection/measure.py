"""From images to what the scores see of them: each view is encoded once, and every candidate gets the same noise, which is the
one that the features are used with."""
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmaselect.extract import Extractor
from mmaselect.extract.draws import average, check_noise
from mmaselect.extract.noise import mix, seeded_noise

from .distributed import gather
from .scores import Score
from .views import align, augment


@dataclass
class Encoded:
    """Some images as the transformer gets them: of all kinds of views one after the other, B latents each."""
    indices: list[int]
    labels: Tensor | None
    origins: dict[int, list]  # view -> where its pixels come from, see ``views.augment``
    width: int  # of the images, in pixels
    latents: Tensor
    noises: list[Tensor | None]  # per draw, of the latents' shape
    timesteps: list[int] = field(default_factory=list)  # that were measured


class Measurement:
    """Rows of one or several scores, for images and timesteps. Grows in both.

    Memory: a score's rows, in float32, for every image, timestep and tap, and the latents of all views.

    Args:
        extractor (Extractor): In evaluation mode.
        scores (Sequence[Score]): What to measure; views are shared between them.
        seed (int): Of augmentation, and of the noise where it is 'random'.
        noise (str): As ``Extractor.forward``. 'seeded' gives all images the draws that the backbone gives them, and their second
            views the next; 'random' gives each image and view draws of its own; 'none' gives none.
        noise_seed (int): Of the noise where it is 'seeded': the backbone's.
        draws (int): Of the noise, over which features are averaged: the backbone's.
        forward_batch (int): At most so many latents per forward pass of the transformer; several candidates share one.
        noise_images (bool): Whether Gaussian noise replaces the images: a control.
        advance (Callable[[int], None]): Told of each forward pass's latents.
    """

    def __init__(self, extractor: Extractor, scores: Sequence[Score], *, seed: int = 0, noise: str = 'seeded',
                 noise_seed: int = 0, draws: int = 1, forward_batch: int = 64, noise_images: bool = False,
                 advance: Callable[[int], None] = lambda count: None):
        check_noise(noise, draws)
        self.extractor, self.scores, self.seed, self.forward_batch = extractor, scores, seed, forward_batch
        self.noise, self.noise_seed, self.draws = noise, noise_seed, draws
        self.noise_images, self.advance = noise_images, advance
        # (augmented, view) of all maps that some score wants
        self.kinds = sorted({(score.augmented, view) for score in scores for view in range(score.views)})
        self.labelled = any(score.labelled for score in scores)
        self.batches: list[Encoded] = []
        self.first_image: Tensor | None = None
        self.alike = True  # whether all images are the first one
        self.rows: dict[tuple[int, int, int], list[Tensor]] = {}  # (score, timestep, tap), by index -> (B, ...) per batch
        self.totals: dict[tuple[int, int, int], Tensor] = {}  # the same -> a sum over images
        self.forwards = 0

    @property
    def per_image(self) -> int:
        """Forward passes per image and timestep."""
        return len(self.kinds) * self.draws

    @torch.no_grad()
    def add(self, batches: Iterable[tuple[list[int], Tensor, Tensor | None]]) -> None:
        """Encodes batches of (indices, images (B, 3, H, W), labels or None).

        Raises:
            ValueError: A score needs labels, and some images have none or several.
        """
        size = max(1, self.forward_batch // len(self.kinds))
        device = next(self.extractor.parameters(), torch.empty(0)).device
        for indices, images, labels in batches:
            if self.labelled and labels is None:
                raise ValueError(f'the score {self.scores[0].name!r} needs one label per image or per pixel, and some of these '
                                 'images have none or several: choose a score without labels, such as half_consistency')
            for start in range(0, len(indices), size):
                part = slice(start, start + size)
                self._add(list(indices)[part], images[part].to(device), labels[part] if self.labelled else None)

    def _add(self, indices, images, labels):
        if self.noise_images:
            images = torch.stack([seeded_noise(images.shape[1:], self.seed, index, 'image')
                                  for index in indices]).mul_(0.5).clamp_(-1, 1).to(images.device)
        if self.first_image is None:
            self.first_image = images[0].clone()
        self.alike &= images.shape[1:] == self.first_image.shape and bool((images - self.first_image).abs().amax() < 1 / 255)
        latents, noises, origins = [], [], {}
        for augmented, view in self.kinds:
            seen = images
            if augmented:
                views = [augment(image, torch.Generator().manual_seed(mix(self.seed, index, view, 'augmentation')))
                         for image, index in zip(images, indices, strict=True)]
                seen, origins[view] = torch.stack([image for image, _ in views]), [origin for _, origin in views]
            latents.append(self.extractor.encoder(seen))
            noises.append(self._noises(latents[-1], indices, view))
        noises = [None] if self.noise == 'none' else [torch.cat(own) for own in zip(*noises, strict=True)]
        self.batches.append(Encoded(indices, labels, origins, images.shape[-1], torch.cat(latents), noises))

    def _noises(self, latent, indices, view):
        """Per draw what is added to the latents (B, C, h, w) of a view, of their shape."""
        if self.noise == 'random':
            return [torch.stack([seeded_noise(latent.shape[1:], self.seed, index, view, *([k] if k else []))
                                 for index in indices]).to(latent.device) for k in range(self.draws)]
        if self.noise == 'none':
            return []
        drawn = self.extractor.draw(latent, self.noise, self.noise_seed, (view + 1) * self.draws)
        return [own.expand_as(latent) for own in drawn[-self.draws:]]

    @torch.no_grad()
    def run(self, timesteps: Sequence[int]) -> None:
        """Measures all images at these timesteps, where they were not yet."""
        for batch in self.batches:
            missing = [t for t in timesteps if t not in batch.timesteps]
            group = max(1, self.forward_batch // len(batch.latents))  # candidates per forward pass
            for first in range(0, len(missing), group):
                chosen = missing[first:first + group]
                t = torch.tensor(chosen).repeat_interleave(len(batch.latents))
                latents = batch.latents.repeat(len(chosen), 1, 1, 1)
                noises = [None if own is None else own.repeat(len(chosen), 1, 1, 1) for own in batch.noises]
                maps = average(self.extractor.features, latents, t, noises, latents[:, 0].numel())
                for tap, own in enumerate(maps):
                    for timestep, values in zip(chosen, own.chunk(len(chosen)), strict=True):
                        self._observe(timestep, tap, values, batch)
                self.forwards += len(t) * self.draws
                self.advance(len(t) * self.draws)
            batch.timesteps += missing

    def forget(self) -> None:
        """Drops all that was measured; the images stay encoded."""
        for batch in self.batches:
            batch.timesteps.clear()
        self.rows.clear()
        self.totals.clear()

    def _observe(self, timestep, tap, values, batch):
        if not values.isfinite().all():
            raise FloatingPointError(f'the feature {self.extractor.taps[tap]} is not finite at t={timestep}: run the DiT and the '
                                     'VAE in float32 or bfloat16 (float16 overflows), and check the weights')
        stride, labels = self.extractor.token_stride, batch.labels
        views = dict(zip(self.kinds, values.chunk(len(self.kinds)), strict=True))
        if labels is not None:
            labels = on_grid(labels, values.shape[-2:], stride).to(values.device)
        # Laid back once for several scores.
        aligned = functools.cache(lambda view: align(views[True, view], batch.origins[view], batch.width, stride))
        for index, score in enumerate(self.scores):
            maps = [aligned(view) if score.aligned else views[score.augmented, view] for view in range(score.views)]
            key = index, timestep, tap
            self.rows.setdefault(key, []).append(score.observe(maps, labels).float().cpu())
            total = score.total(maps)
            if total is not None:
                self.totals[key] = _sum([self.totals[key], total] if key in self.totals else [total])

    def gathered(self, index: int = 0) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
        """Of one score and of all ranks, for each timestep in ascending order and each tap: the timestep, the tap's index, rows
        (N, ...) in float64 in the order of the images, and the total or None. Every rank must go through all of it."""
        for timestep in sorted({t for own in gather([t for batch in self.batches for t in batch.timesteps]) for t in own}):
            mine = [batch.indices for batch in self.batches if timestep in batch.timesteps]
            order = torch.tensor([image for own in gather(mine) for batch in own for image in batch]).argsort()
            for tap in range(len(self.extractor.taps)):
                key = index, timestep, tap
                rows = [part for own in gather(self.rows.get(key, [])) for part in own]
                totals = [own for own in gather(self.totals.get(key)) if own is not None]
                yield timestep, tap, torch.cat(rows)[order].double(), _sum(totals) if totals else None


def _sum(totals):
    if len({total.shape for total in totals}) > 1:
        raise ValueError('this score needs images of one size: set image_size, or choose another score')
    return functools.reduce(operator.add, totals)


def on_grid(labels: Tensor, grid: Sequence[int], stride: int) -> Tensor:
    """Labels at the middle of the cells of a feature map (h, w): (B,) as they are, (B, H, W) -> (B, h, w), 255 becomes -1."""
    if labels.ndim == 1:
        return labels.long()
    # A cell that pads the image at its end shows the last pixel.
    y, x = ((torch.arange(cells) * stride + stride // 2).clamp_max(side - 1)
            for cells, side in zip(grid, labels.shape[-2:], strict=True))
    labels = labels[:, y][:, :, x].long()
    return labels.where(labels != 255, torch.full_like(labels, -1))
