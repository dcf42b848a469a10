"""What the parts of a model's config give and read: found by building them on PyTorch's meta device, without weights."""
import copy
import functools
import importlib
from collections.abc import Mapping

import torch
from mmengine.registry import MODELS

from ..configs import several, type_name


class SwapError(ValueError):
    """The config cannot be swapped. The message names what stands against it, and why."""


def built(config: Mapping, device: str) -> torch.nn.Module:
    """A module in evaluation mode, on the meta device without weights."""
    linspace = torch.linspace
    torch.linspace = functools.partial(linspace, device='cpu')  # from which backbones read their rates of stochastic depth
    try:
        with torch.device(device):
            module = MODELS.build(copy.deepcopy(config))
    finally:
        torch.linspace = linspace
    module.eval()  # which returns nothing where a backbone of the toolboxes forgot to
    return module


def outline(backbone: Mapping, neck: Mapping | None) -> tuple[list[float], list[float]]:
    """Pixels per cell of the maps that a backbone gives, and of those that come out of the neck behind it.

    Raises:
        SwapError: They cannot be built.
    """
    size = backbone.get('img_size') or 512
    height, width = (size, size) if isinstance(size, int) else size
    errors = []
    for device in ('meta', 'cpu'):
        try:
            body, behind = built(backbone, device), built(neck, device) if neck else None
            maps = body(torch.zeros(1, 3, height, width, device=device))
            maps = list(maps) if several(maps) else [maps]
            found = list(behind(maps)) if behind else maps
            before, after = ([height / (one[0] if several(one) else one).shape[2] for one in some] for some in (maps, found))
            return before, after
        except Exception as error:  # whatever a toolbox's or a user's own backbone raises
            errors.append(error)
    raise SwapError(f'the levels of {type_name(backbone)} are not known, since it cannot be built: {type(errors[0]).__name__}: '
                    f'{errors[0]}')


def importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def without_weights(config: Mapping) -> dict:
    """A backbone's config that loads nothing when it is built."""
    return {key: False if key == 'pretrained' and value is True else None if key in ('pretrained', 'init_cfg') else value
            for key, value in config.items()}
