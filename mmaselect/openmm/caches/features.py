"""What stands for a frozen DiTBackbone in a config whose features were cached."""
import math

import torch
from mmengine.model import BaseModule

from mmaselect.extract.shards import caches_in
from mmaselect.registry import MODELS


@MODELS.register_module()
class CachedFeatures(BaseModule):
    """Stands for a frozen DiTBackbone whose features tools/cache_features.py wrote.

    What a BatchNorm and the means over the parts of a grid make of a map depends on each channel's mean and standard deviation in
    each part alone. So maps of as many cells as the DiT's that share both give an AutoTimestepNeck with norm='channel' or None
    and pool='mean' or 'grid', of the grid that was cached, what it would have got, and a head is trained as through the DiT.
    The checkpoint fits the config with the DiT.

    Args:
        cache (str): Folder of the caches of all splits.
        init_cfg (dict | None): MMEngine's.

    Raises:
        FileNotFoundError: There is no cache.
        ValueError: The splits were cached with different models, timesteps or taps.
    """

    def __init__(self, cache, init_cfg=None):
        super().__init__(init_cfg)
        caches = caches_in(cache, 'features')
        models = {name: own.settings['model'] for name, own in caches.items()}
        first = next(iter(models.values()))
        if any(own != first for own in models.values()):
            raise ValueError(f'the splits {", ".join(models)} in {cache} were made with different models, timesteps or taps: '
                             'remove them and write them together')
        timesteps = first['timesteps']
        self.num_maps = len(timesteps) * len(first['taps'])
        # A checkpoint tells the choice to the DiTBackbone that it is loaded into later.
        self.register_buffer('timestep', torch.tensor(timesteps if len(timesteps) > 1 else timesteps[0]))
        self.register_buffer('tap', torch.tensor(first['tap']))
        self.grid = tuple(first.get('grid', (1, 1)))
        cells = int(next(iter(caches.values())).read(0, 'about')[1])
        self.register_buffer('pattern', signs(cells), persistent=False)

    def forward(self, moments):
        """Maps, one per timestep and tap, each (B, D, rows, columns * cells), of means and deviations (B, maps * D, 2, parts)."""
        mean, deviation = moments[..., None].unbind(2)  # (B, maps * D, parts, 1) each
        cells = mean + deviation * self.pattern  # (B, maps * D, parts, cells)
        return cells.unflatten(2, self.grid).flatten(3).chunk(self.num_maps, 1)


def signs(cells):
    """Numbers (cells,) of mean 0 and variance 1; of one cell, which has no variance, 0."""
    pattern = torch.ones(cells)
    pattern[1::2] = -1
    if cells % 2:
        pattern[-1] = 0
        pattern *= math.sqrt(cells / max(1, cells - 1))
    return pattern
