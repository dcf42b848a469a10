"""Augmented views of an image for scores that ask what survives an augmentation."""
import torch
import torch.nn.functional as F


def augment(image, generator):
    """Shifts by up to a tenth of each side and mirrors with probability one half.

    The border is filled by reflection, so that no edge appears that is in none of the images.

    Args:
        image (Tensor): (C, H, W).
        generator (torch.Generator): On the CPU.

    Returns:
        Tensor: (C, H, W).
    """
    height, width = image.shape[-2:]
    reach = [height // 10, width // 10]
    dy, dx = (int(torch.randint(2 * r + 1, (), generator=generator)) for r in reach)
    padded = F.pad(image[None], (reach[1], reach[1], reach[0], reach[0]), mode='reflect')[0]
    view = padded[:, dy:dy + height, dx:dx + width]
    return view.flip(-1) if torch.rand((), generator=generator) < 0.5 else view
