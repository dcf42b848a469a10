"""Augmented views of an image for scores that ask what survives an augmentation, and the way back to the image."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(image: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[int, int, bool]]:
    """Shifts by up to a tenth of each side and mirrors with probability one half.

    The border is filled by reflection, so that no edge appears that is in none of the images.

    Args:
        image (Tensor): (C, H, W).
        generator (torch.Generator): On the CPU.

    Returns:
        tuple[Tensor, tuple[int, int, bool]]: The view (C, H, W), and where it came from: pixel (y, x) of the view, before it was
            mirrored if it was, is pixel (y + dy, x + dx) of the image.
    """
    height, width = image.shape[-2:]
    reach = [height // 10, width // 10]
    dy, dx = (int(torch.randint(2 * r + 1, (), generator=generator)) for r in reach)
    padded = F.pad(image[None], (reach[1], reach[1], reach[0], reach[0]), mode='reflect')[0]
    view = padded[:, dy:dy + height, dx:dx + width]
    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    return view.flip(-1) if mirrored else view, (dy - reach[0], dx - reach[1], mirrored)


def align(maps: Tensor, origins: Sequence[tuple[int, int, bool]], width: int, stride: int) -> Tensor:
    """Maps of views as they would lie on the image: each cell is read, bilinearly, where its middle is seen in the view.

    Args:
        maps (Tensor): (B, D, h, w).
        origins (Sequence[tuple[int, int, bool]]): Of the B views, as ``augment`` gives them.
        width (int): Of the image, in pixels; the maps may reach beyond it.
        stride (int): Pixels per cell.

    Returns:
        Tensor: (B, D, h, w). Cells that the view does not show repeat its border.
    """
    h, w = maps.shape[-2:]
    dy, dx, mirrored = (torch.tensor(column, device=maps.device)[:, None] for column in zip(*origins, strict=True))  # (B, 1)
    y = stride * (torch.arange(h, device=maps.device) + 0.5) - dy  # (B, h), pixels of the view
    x = stride * (torch.arange(w, device=maps.device) + 0.5) - dx
    x = torch.where(mirrored, width - x, x)
    y, x = 2 * y / (stride * h) - 1, 2 * x / (stride * w) - 1  # -1 and 1 are the edges of the map
    grid = torch.stack([x[:, None].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)], -1)  # (B, h, w, 2)
    return F.grid_sample(maps.float(), grid, padding_mode='border', align_corners=False)
