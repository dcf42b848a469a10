"""From images to what the scores see of them: each image is encoded once, and every candidate gets the same noise."""
import functools

import torch
import torch.distributed as dist

from mmaselect.extract.noise import mix, seeded_noise

from .images import rank_and_size
from .views import align, augment

ONE_SIZE = 'this score needs images of one size: set image_size, or choose another score'


class Measurement:
    """Rows of one or several scores, for every image and every timestep that was asked for. Grows in both.

    Args:
        extractor (FeatureExtractor): In evaluation mode.
        scores (Sequence[Score]): What to measure; views are shared between them.
        seed (int): Of noise and augmentation.
        forward_batch (int): Latents per forward pass of the transformer; several candidates share one.
        noise_images (bool): Whether to put Gaussian noise in the place of the images: a control.
        advance (Callable[[int], None]): Told of each forward pass's latents.
    """

    def __init__(self, extractor, scores, *, seed=0, forward_batch=64, noise_images=False, advance=lambda count: None):
        self.extractor, self.scores, self.seed, self.forward_batch = extractor, scores, seed, forward_batch
        self.noise_images, self.advance = noise_images, advance
        # (augmented, view) of all maps that some score wants
        self.kinds = sorted({(score.augmented, view) for score in scores for view in range(score.views)})
        self.chunks = []  # per batch: indices, labels, where the views came from, latents and noises of all kinds
        self.measured = []  # per batch: the timesteps that were measured
        self.rows = {}  # (score's place, timestep, image) -> per tap a row
        self.totals = {}  # (score's place, timestep, tap's place) -> a sum over images
        self.forwards = 0

    @property
    def per_image(self):
        """Forward passes per image and timestep."""
        return len(self.kinds)

    @torch.no_grad()
    def add(self, batches):
        """Encodes batches of (indices, images (B, 3, H, W), labels or None)."""
        for indices, images, labels in batches:
            if self.noise_images:
                images = torch.stack([seeded_noise(images.shape[1:], self.seed, index, 'image')
                                      for index in indices]).mul_(0.5).clamp_(-1, 1).to(images.device)
            latents, noises, origins = [], [], {}
            for augmented, view in self.kinds:
                seen = images
                if augmented:
                    views = [augment(image, torch.Generator().manual_seed(mix(self.seed, index, view)))
                             for image, index in zip(images, indices, strict=True)]
                    seen, origins[view] = torch.stack([image for image, _ in views]), [origin for _, origin in views]
                latents.append(self.extractor.encoder(seen))
                noises.append(torch.stack([seeded_noise(latents[-1].shape[1:], self.seed, index, view) for index in indices]))
            self.chunks.append((list(indices), labels, origins, images.shape[-1], torch.cat(latents),
                                torch.cat(noises).to(latents[0].device)))
            self.measured.append(set())

    @torch.no_grad()
    def run(self, timesteps):
        """Measures whatever is missing of the images added so far at these timesteps."""
        for (*about, latents, noises), done in zip(self.chunks, self.measured, strict=True):
            missing = [t for t in timesteps if t not in done]
            group = max(1, self.forward_batch // len(latents))  # candidates per forward pass
            for first in range(0, len(missing), group):
                chosen = missing[first:first + group]
                t = torch.tensor(chosen).repeat_interleave(len(latents))
                maps = self.extractor.features(latents.repeat(len(chosen), 1, 1, 1), t, noises.repeat(len(chosen), 1, 1, 1))
                for tap, own in enumerate(maps):
                    for timestep, values in zip(chosen, own.chunk(len(chosen)), strict=True):
                        self._observe(timestep, tap, values, *about)
                self.forwards += len(t)
                self.advance(len(t))
            done.update(missing)

    def _observe(self, timestep, tap, values, indices, labels, origins, width):
        if not values.isfinite().all():
            raise FloatingPointError(f'the feature {self.extractor.taps[tap]} is not finite at t={timestep}: run the DiT and the '
                                     'VAE in float32 or bfloat16 (float16 overflows), and check the weights')
        stride = getattr(self.extractor, 'token_stride', 1)
        views = dict(zip(self.kinds, values.chunk(len(self.kinds)), strict=True))
        if labels is not None:
            labels = on_grid(labels, values.shape[-2:], stride).to(values.device)
        for place, score in enumerate(self.scores):
            maps = [views[score.augmented, view] for view in range(score.views)]
            if score.aligned:
                maps = [align(own, origins[view], width, stride) for view, own in enumerate(maps)]
            for index, row in zip(indices, score.observe(maps, labels).float().cpu(), strict=True):
                self.rows.setdefault((place, timestep, index), []).append(row)
            total = score.total(maps)
            if total is not None:
                before = self.totals.get((place, timestep, tap), 0)
                if not isinstance(before, int) and before.shape != total.shape:
                    raise ValueError(ONE_SIZE)
                self.totals[place, timestep, tap] = before + total

    def gathered(self, place=0):
        """Of one score and of all ranks: rows by timestep, each a list per tap of (N, ...) in float64 in the order of the images,
        and totals by (timestep, tap)."""
        rows = {key[1:]: row for key, row in self.rows.items() if key[0] == place}
        totals = {key[1:]: total for key, total in self.totals.items() if key[0] == place}
        if dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, (rows, totals))
            rows = {key: row for own, _ in everyone for key, row in own.items()}
            totals = functools.reduce(_add, (own for _, own in everyone))
        table = {}
        for timestep, index in sorted(rows):
            table.setdefault(timestep, []).append(rows[timestep, index])
        return {t: [torch.stack(tap).double() for tap in zip(*images, strict=True)] for t, images in table.items()}, totals

    def all_forwards(self):
        """Forward passes of all ranks."""
        if not dist.is_initialized():
            return self.forwards
        everyone = [None] * rank_and_size()[1]
        dist.all_gather_object(everyone, self.forwards)
        return sum(everyone)


def _add(left, right):
    if any(left[key].shape != right[key].shape for key in left.keys() & right.keys()):
        raise ValueError(ONE_SIZE)
    return {key: left[key] + right[key] if key in left and key in right else left.get(key, right.get(key))
            for key in {**left, **right}}


def on_grid(labels, grid, stride):
    """Labels at the middle of the cells of a feature map (h, w): (B,) as they are, (B, H, W) -> (B, h, w), 255 becomes -1."""
    if labels.ndim == 1:
        return labels.long()
    labels = labels.long().where(labels != 255, torch.full((), -1, dtype=torch.long, device=labels.device))
    # A cell that pads the image at its end shows the last pixel.
    y, x = ((torch.arange(cells) * stride + stride // 2).clamp_max(side - 1)
            for cells, side in zip(grid, labels.shape[-2:], strict=True))
    return labels[:, y][:, :, x]
