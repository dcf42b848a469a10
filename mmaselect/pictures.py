"""Feature maps as colours, masks with a legend, and grids of pictures, enlarged so that a person can read them. No OpenMMLab."""
import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .files import atomic

SIDE = 512  # pixels that the longer side of a picture has at least
DPI = 150  # pixels per inch of a grid
PANEL = SIDE / DPI  # inches, the longer side of a picture in a grid
TEXT, MARGIN = 20, 12  # pixels of a legend's letters, and around pictures
NO_CLASS = 255, 255, 255
ROUNDING = 1e-6  # what is smaller, against the first component, is the rounding of a constant


def as_picture(image):
    """An image (3, H, W) in [-1, 1], or any other three channels in that range, as (H, W, 3) in [0, 1] on the CPU."""
    return (image.float().cpu().permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)  # (H, W, 3)


def principal_colours(maps):
    """The first three principal components of feature maps as red, green and blue.

    They are fitted over the cells of all maps together, so that a colour means the same in all of them. Each is scaled from its
    1st to its 99th percentile, and turned so that its longer tail is bright, since its sign is arbitrary.

    Args:
        maps (Sequence[Tensor]): Per image (D, h, w); heights and widths may differ.

    Returns:
        list[Tensor]: Per image (h, w, 3) in [0, 1].

    Raises:
        FloatingPointError: A feature is not finite.
    """
    cells = torch.cat([m.flatten(1) for m in maps], 1).T.double().cpu()  # (cells, D)
    if not cells.isfinite().all():
        raise FloatingPointError('the features are not all finite, so that they have no principal components')
    centred = cells - cells.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred)[1]  # (D, D), the first component last
    scores = centred @ axes[:, -3:].flip(1)  # (cells, 3)
    scores = scores * torch.where(scores.pow(3).sum(0) < 0, -1, 1)
    low, high = scores.quantile(torch.tensor([0.01, 0.99], dtype=scores.dtype), dim=0)  # (3,), (3,)
    varies = high - low > ROUNDING * scores.abs().max()
    colours = torch.where(varies, (scores - low) / (high - low), 0.5).clamp(0, 1).float()  # (cells, 3)
    parts = colours.split([m[0].numel() for m in maps])
    return [part.unflatten(0, m.shape[1:]) for part, m in zip(parts, maps, strict=True)]  # (h, w, 3) each


def feature_colours(extractor, latents, timesteps, taps, *, noise, advance=lambda: None):
    """Features of several images at several timesteps and taps as colours, fitted for each timestep and tap.

    Args:
        extractor (Extractor): Reads ``taps`` from now on.
        latents (Sequence[Tensor]): Per image (1, C, H, W), as ``extractor.encoder`` gives them.
        timesteps (Sequence[int]): 0 the cleanest.
        taps (Sequence[tuple[int, str]]): As (block, name).
        noise (Sequence[Tensor | None]): Per image (1, C, H, W), or None to add none.
        advance (Callable): Called after each timestep.

    Returns:
        dict[int, list[list[Tensor]]]: Per timestep, tap and image (h, w, 3) in [0, 1].

    Raises:
        ValueError: Timesteps or taps that do not exist.
        FloatingPointError: A feature is not finite.
    """
    extractor.set_taps(taps)
    colours = {}
    for t in timesteps:
        with torch.no_grad():
            maps = [extractor.features(latent, t, eps) for latent, eps in zip(latents, noise, strict=True)]
        colours[t] = [principal_colours([m[0] for m in tap]) for tap in zip(*maps, strict=True)]
        advance()
    return colours


def masks_with_legend(image, masks, classes, palette, *, opacity=0.7, side=SIDE):
    """An image beside its masks, in the colours of their classes, and below which class has which.

    Pixels are enlarged by a whole number, without smoothing, to ``side`` or more. The legend names the classes that occur.

    Args:
        image (ndarray): (H, W, 3) uint8.
        masks (dict[str, ndarray]): By their titles, (H, W) integers; what is no class, such as 255, is white.
        classes (Sequence[str]): Names.
        palette (Sequence[Sequence[int]]): Red, green and blue of each class, 0 to 255.
        opacity (float): Of the masks on the image.
        side (int): Pixels.

    Returns:
        ndarray: (H', W', 3) uint8.
    """
    times = max(1, math.ceil(side / max(image.shape[:2])))
    colours = np.array([*palette, NO_CLASS])
    panels = {'image': image}
    for title, mask in masks.items():
        known = (mask >= 0) & (mask < len(palette))
        solid = colours[np.where(known, mask.astype(int), -1)]  # (H, W, 3)
        shown = np.where(known, opacity, 1)[..., None]
        panels[title] = ((1 - shown) * image + shown * solid).round().astype(np.uint8)
    font, line = ImageFont.load_default(TEXT), TEXT + MARGIN
    height, width = (times * pixels for pixels in image.shape[:2])
    whole = MARGIN + len(panels) * (width + MARGIN)
    found = sorted({int(value) for mask in masks.values() for value in np.unique(mask)})
    legend = [(classes[k], tuple(palette[k])) for k in found if 0 <= k < len(classes)]
    legend += [('no class', NO_CLASS)] * (len(legend) < len(found))
    places, x, row = [], MARGIN, 0  # entries from left to right, in as many rows as it takes
    for name, _ in legend:
        wide = 2 * line + round(font.getlength(name))
        if x > MARGIN and x + wide > whole:
            x, row = MARGIN, row + 1
        places.append((x, 2 * MARGIN + line + height + row * line))
        x += wide
    canvas = Image.new('RGB', (whole, 2 * MARGIN + line + height + (row + 1) * line + MARGIN), 'white')
    draw = ImageDraw.Draw(canvas)
    for number, (title, panel) in enumerate(panels.items()):
        left = MARGIN + number * (width + MARGIN)
        draw.text((left, MARGIN // 2), title, 'black', font)
        canvas.paste(Image.fromarray(panel).resize((width, height), Image.NEAREST), (left, line))
    for (name, colour), (x, y) in zip(legend, places, strict=True):
        draw.rectangle((x, y, x + TEXT, y + TEXT), colour, 'black')
        draw.text((x + line, y - 2), name, 'black', font)
    return np.asarray(canvas)


def noise_level(process, t):
    """sigma and log-SNR at a timestep, for a label."""
    return f'σ {process.sigma[t].item():.2f}, log-SNR {process.log_snr(t):.1f}'


def grid(path, rows, *, title, columns, labels, notes=None, chosen_rows=(), chosen_columns=()):
    """Draws rows of pictures into a file, whose suffix names the format; it appears only when it is whole.

    Args:
        path (str | Path): .png, .pdf, ...
        rows (Sequence[Sequence[Tensor]]): Pictures (h, w, 3) in [0, 1], as many in each row as ``columns``.
        title (str): Above all of them.
        columns, labels, notes (Sequence[str]): Above the columns, left of the rows, and right of the rows.
        chosen_rows, chosen_columns (Collection[int]): What to label in red.

    Raises:
        OSError: The folder cannot be written.
    """
    from matplotlib.figure import Figure
    notes = notes or [''] * len(rows)
    height, width = rows[0][0].shape[:2]  # of the image; its feature maps have about its shape
    w, h = (side * PANEL / max(height, width) for side in (width, height))  # in inches, as all that follows
    left, right, top, bottom, gap = 1.9, 2.1 if any(notes) else 0.15, 1.2, 0.15, 0.1
    size = left + len(columns) * (w + gap) - gap + right, top + len(rows) * (h + gap) - gap + bottom
    figure = Figure(figsize=size)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw=dict(
        left=left / size[0], right=1 - right / size[0], top=1 - top / size[1], bottom=bottom / size[1], wspace=gap / w,
        hspace=gap / h))
    figure.suptitle(title, x=0.1 / size[0], y=1 - 0.1 / size[1], ha='left', va='top', fontsize=16)

    def style(chosen):
        return dict(fontsize=14, color='tab:red' if chosen else 'black', fontweight='bold' if chosen else 'normal')

    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            axes[r, c].imshow(picture.numpy(), interpolation='nearest', aspect='auto')
            axes[r, c].set(xticks=[], yticks=[])
            axes[r, c].spines[:].set_visible(False)
        axes[r, 0].set_ylabel(labels[r], rotation=0, ha='right', va='center', labelpad=6, **style(r in chosen_rows))
        axes[r, -1].annotate(notes[r], (1, 0.5), (6, 0), 'axes fraction', textcoords='offset points', va='center',
                             **style(r in chosen_rows))
    for c, name in enumerate(columns):
        axes[0, c].set_title(name, pad=4, **style(c in chosen_columns))
    with atomic(path) as part:
        figure.savefig(part, dpi=DPI)
