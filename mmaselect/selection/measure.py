"""From images to what the scores see of them: each view is encoded once, and every candidate gets the same noise, which is the
one that the features are used with."""
import functools
import operator

import torch

from mmaselect.extract.draws import check_noise, draw
from mmaselect.extract.noise import mix, seeded_noise

from .distributed import gather
from .views import align, augment


class Measurement:
    """Rows of one or several scores, for every image and every timestep that was asked for. Grows in both.

    Memory: a score's rows, in float32, for every image, timestep and tap, and the latents of all views.

    Args:
        extractor (Extractor): In evaluation mode.
        scores (Sequence[Score]): What to measure; views are shared between them.
        seed (int): Of augmentation, and of the noise where it is 'random'.
        noise (str): As ``Extractor.forward``. 'seeded' gives all images the draw that the backbone gives them, and their second
            views the next; 'random' gives each image and view a draw of its own; 'none' gives none.
        noise_seed (int): Of the noise where it is 'seeded': the backbone's.
        forward_batch (int): At most so many latents per forward pass of the transformer; several candidates share one.
        noise_images (bool): Whether to put Gaussian noise in the place of the images: a control.
        advance (Callable[[int], None]): Told of each forward pass's latents.
    """

    def __init__(self, extractor, scores, *, seed=0, noise='seeded', noise_seed=0, forward_batch=64, noise_images=False,
                 advance=lambda count: None):
        check_noise(noise, 1)
        self.extractor, self.scores, self.seed, self.forward_batch = extractor, scores, seed, forward_batch
        self.noise, self.noise_seed = noise, noise_seed
        self.noise_images, self.advance = noise_images, advance
        # (augmented, view) of all maps that some score wants
        self.kinds = sorted({(score.augmented, view) for score in scores for view in range(score.views)})
        self.labelled = any(score.labelled for score in scores)
        self.chunks = []  # per batch: indices, labels, origins of the views, width in pixels, latents and noises of all kinds
        self.timesteps = []  # those that were asked for
        self.measured = []  # per batch: how many of them were measured
        self.rows = {}  # (score's index, timestep, tap's index) -> rows (B, ...) per batch, on the CPU
        self.totals = {}  # the same -> a sum over images
        self.forwards = 0

    @property
    def per_image(self):
        """Forward passes per image and timestep."""
        return len(self.kinds)

    @torch.no_grad()
    def add(self, batches):
        """Encodes batches of (indices, images (B, 3, H, W), labels or None)."""
        size = max(1, self.forward_batch // self.per_image)
        device = next(self.extractor.parameters(), torch.empty(0)).device
        for indices, images, labels in batches:
            for start in range(0, len(indices), size):
                part = slice(start, start + size)
                self._add(list(indices)[part], images[part].to(device), labels[part] if self.labelled else None)

    def _add(self, indices, images, labels):
        if self.noise_images:
            images = torch.stack([seeded_noise(images.shape[1:], self.seed, index, 'image')
                                  for index in indices]).mul_(0.5).clamp_(-1, 1).to(images.device)
        latents, noises, origins = [], [], {}
        for augmented, view in self.kinds:
            seen = images
            if augmented:
                views = [augment(image, torch.Generator().manual_seed(mix(self.seed, index, view, 'augmentation')))
                         for image, index in zip(images, indices, strict=True)]
                seen, origins[view] = torch.stack([image for image, _ in views]), [origin for _, origin in views]
            latents.append(self.extractor.encoder(seen))
            noises.append(self._noise(latents[-1], indices, view))
        self.chunks.append((indices, labels, origins, images.shape[-1], torch.cat(latents),
                            None if self.noise == 'none' else torch.cat(noises)))
        self.measured.append(0)

    def _noise(self, latent, indices, view):
        """What is added to the latents (B, C, h, w) of a view, of their shape, or None."""
        if self.noise == 'random':
            draws = [seeded_noise(latent.shape[1:], self.seed, index, view) for index in indices]
            return torch.stack(draws).to(latent.device)
        return None if self.noise == 'none' else draw(latent, self.noise, self.noise_seed, view + 1)[view].expand_as(latent)

    @torch.no_grad()
    def run(self, timesteps):
        """Measures these timesteps, and what is missing of those that were asked for before."""
        self.timesteps += [t for t in timesteps if t not in self.timesteps]
        for number, (_, *about, latents, noises) in enumerate(self.chunks):
            missing = self.timesteps[self.measured[number]:]
            group = max(1, self.forward_batch // len(latents))  # candidates per forward pass
            for first in range(0, len(missing), group):
                chosen = missing[first:first + group]
                t = torch.tensor(chosen).repeat_interleave(len(latents))
                added = None if noises is None else noises.repeat(len(chosen), 1, 1, 1)
                maps = self.extractor.features(latents.repeat(len(chosen), 1, 1, 1), t, added)
                for tap, own in enumerate(maps):
                    for timestep, values in zip(chosen, own.chunk(len(chosen)), strict=True):
                        self._observe(timestep, tap, values, *about)
                self.forwards += len(t)
                self.advance(len(t))
            self.measured[number] = len(self.timesteps)

    def forget(self):
        """Drops all that was measured; the images stay encoded."""
        self.timesteps, self.measured = [], [0] * len(self.chunks)
        self.rows.clear()
        self.totals.clear()

    def _observe(self, timestep, tap, values, labels, origins, width):
        if not values.isfinite().all():
            raise FloatingPointError(f'the feature {self.extractor.taps[tap]} is not finite at t={timestep}: run the DiT and the '
                                     'VAE in float32 or bfloat16 (float16 overflows), and check the weights')
        stride = self.extractor.token_stride
        views = dict(zip(self.kinds, values.chunk(len(self.kinds)), strict=True))
        if labels is not None:
            labels = on_grid(labels, values.shape[-2:], stride).to(values.device)
        aligned = functools.cache(lambda view: align(views[True, view], origins[view], width, stride))  # for several scores
        for index, score in enumerate(self.scores):
            maps = [aligned(view) if score.aligned else views[score.augmented, view] for view in range(score.views)]
            key = index, timestep, tap
            self.rows.setdefault(key, []).append(score.observe(maps, labels).float().cpu())
            total = score.total(maps)
            if total is not None:
                self.totals[key] = _sum([self.totals[key], total] if key in self.totals else [total])

    def gathered(self, index=0):
        """Of one score and of all ranks, for each timestep in ascending order and each tap: the timestep, the tap's index, rows
        (N, ...) in float64 in the order of the images, and the total or None. Every rank must go through all of it."""
        order = torch.tensor([index for own in gather([chunk[0] for chunk in self.chunks]) for chunk in own for index in chunk])
        order = order.argsort()
        for timestep in sorted(self.timesteps):
            for tap in range(len(self.extractor.taps)):
                key = index, timestep, tap
                rows = [part for own in gather(self.rows.get(key, [])) for part in own]
                totals = [own for own in gather(self.totals.get(key)) if own is not None]
                yield timestep, tap, torch.cat(rows)[order].double(), _sum(totals) if totals else None


def _sum(totals):
    if len({total.shape for total in totals}) > 1:
        raise ValueError('this score needs images of one size: set image_size, or choose another score')
    return functools.reduce(operator.add, totals)


def on_grid(labels, grid, stride):
    """Labels at the middle of the cells of a feature map (h, w): (B,) as they are, (B, H, W) -> (B, h, w), 255 becomes -1."""
    if labels.ndim == 1:
        return labels.long()
    # A cell that pads the image at its end shows the last pixel.
    y, x = ((torch.arange(cells) * stride + stride // 2).clamp_max(side - 1)
            for cells, side in zip(grid, labels.shape[-2:], strict=True))
    labels = labels[:, y][:, :, x].long()
    return labels.where(labels != 255, torch.full_like(labels, -1))
