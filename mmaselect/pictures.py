"""Feature maps as colours, and grids of pictures. Torch and matplotlib only."""
import torch

from .files import atomic

PANEL, DPI = 1.5, 150  # inches, the longer side of a picture in a grid, and pixels per inch
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
    left, right, top, bottom, gap = 1.2, 1.3 if any(notes) else 0.1, 0.75, 0.1, 0.08
    size = left + len(columns) * (w + gap) - gap + right, top + len(rows) * (h + gap) - gap + bottom
    figure = Figure(figsize=size)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw=dict(
        left=left / size[0], right=1 - right / size[0], top=1 - top / size[1], bottom=bottom / size[1], wspace=gap / w,
        hspace=gap / h))
    figure.suptitle(title, x=0.1 / size[0], y=1 - 0.1 / size[1], ha='left', va='top', fontsize=10)

    def style(chosen):
        return dict(fontsize=8, color='tab:red' if chosen else 'black', fontweight='bold' if chosen else 'normal')

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
