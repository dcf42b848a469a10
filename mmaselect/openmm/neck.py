"""AutoTimestepNeck: the policy by which the timestep is chosen, and what the head gets of the features."""
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import nn

from mmaselect.registry import MODELS
from mmaselect.selection import SelectionPolicy

from .fusion import FUSIONS, check_heads, fuse
from .norms import normalise, per_tap

SCALES = (4, 2, 1, 0.5)


class AttentionPool(nn.Module):
    """One trained class token attends to all cells of a map (B, D, h, w) and becomes the vector (B, D).

    As the attentive probe of Context Autoencoder (arXiv:2202.03026, section 4) and CaiT's class attention.
    """

    def __init__(self, channels, heads=8):
        super().__init__()
        check_heads(channels, heads)
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, feature):
        tokens = self.norm(feature.flatten(2).transpose(1, 2))  # (B, h * w, D)
        token = self.token.expand(len(tokens), -1, -1)
        return self.attention(token, tokens, tokens, need_weights=False)[0][:, 0]  # (B, D)


def rescale(channels, factor):
    """A level of the pyramid, (B, D, h, w) -> (B, D, factor h, factor w), as in ViTDet (arXiv:2203.16527, section 3).

    Not MMSegmentation's Feature2Pyramid, which ignores the order of its rescales, fails where one of four is left out, drops the
    last row of an odd map, and is not there with MMPretrain alone.
    """
    up = [nn.ConvTranspose2d(channels, channels, 2, stride=2)]
    if factor == 4:
        # GroupNorm in place of ViTDet's LayerNorm over channels and BEiT's SyncBN: the same on one image as on many.
        return nn.Sequential(*up, nn.GroupNorm(1, channels), nn.GELU(), nn.ConvTranspose2d(channels, channels, 2, stride=2))
    if factor == 2:
        return nn.Sequential(*up)
    if factor == 1:
        return nn.Identity()
    if factor == 0.5:
        return nn.MaxPool2d(2, ceil_mode=True)
    raise ValueError(f'the pyramid scales by 4, 2, 1 or 0.5, not {factor}')


@MODELS.register_module()
class AutoTimestepNeck(BaseModule):
    """Holds the policy of the timestep's choice, and shapes the features for the head.

    The choice itself is made by ``AutoTimestepHook`` before the first forward pass, since a neck never sees images.

    Args:
        in_channels (int): Channels of each tap: the DiT's width.
        num_taps (int): How many taps the backbone gives.
        output (str): 'pyramid' (a level per scale, for UPerHead and the like), 'map' (all taps and timesteps fused) or
            'vector' (the same, pooled, for a classifier).
        scales (Sequence[float]): Of the pyramid's levels against the feature map, each 4, 2, 1 or 0.5. One tap feeds all
            levels; as many taps as levels feed one each, at all timesteps fused.
        levels (Sequence[int] | None): Indices of the pyramid's levels that are built, and None stands in the place of the others;
            so heads keep their ``in_index``. By default all. A level that no head reads wastes time, and has weights without a
            gradient, which DDP refuses. ``read_levels`` finds them; tools/train.py puts them in where a config has none.
        fusion (str): How several maps become one: 'concat' (side by side, so that the head sees their channels together),
            'mean', 'weights' (a mean with a trained weight per timestep and tap) or 'attention' (in each cell, a trained
            query attends to them). All but the first keep ``in_channels``, and want a ``norm`` that puts the maps on one scale.
        pool (str): For a vector: 'mean' over the map, 'grid' for the means of its parts side by side, which keeps where things
            are, or 'attention' with a trained class token.
        grid (int | Sequence[int]): Parts along height and width for pool='grid'. The vector has as many times more channels.
        num_heads (int): Of the attention, in pooling and in fusion.
        norm (str | None): 'layer' (over channels), 'channel' (BatchNorm without trained weights, as linear probes have) or
            None, on each map first.
        discard_channels (Sequence[int] | Sequence[Sequence[int]] | None): Channels that are left out of the norm and are zero
            after it: the same of all taps, or a list per tap. For the massive activations of large DiTs; see
            tools/analysis_tools/massive_activations.py.
        selection (dict | SelectionPolicy | None): How the timestep is chosen: options of ``SelectionPolicy``. None takes its
            defaults. ``num_timesteps`` is the backbone's, also where that fixes its timesteps.
        init_cfg (dict | None): MMEngine's.

    Raises:
        ValueError: An unknown output, fusion, pool, norm or scale, a wrong option of ``selection``, channels that are not
            there, or numbers of taps and levels that do not fit.
    """

    def __init__(self, in_channels, num_taps=1, output='map', scales=SCALES, levels=None, fusion='concat', pool='mean', grid=4,
                 num_heads=8, norm=None, discard_channels=None, selection=None, init_cfg=None):
        super().__init__(init_cfg)
        for name, value, allowed in (('output', output, ('pyramid', 'map', 'vector')),
                                     ('pool', pool, ('mean', 'grid', 'attention')), ('norm', norm, ('layer', 'channel', None)),
                                     ('fusion', fusion, FUSIONS)):
            if value not in allowed:
                raise ValueError(f'{name}={value!r}: choose one of {allowed}')
        if output == 'pyramid' and num_taps not in (1, len(scales)):
            raise ValueError(f'{num_taps} taps cannot feed a pyramid of {len(scales)} levels: give one tap, or one per level')
        self.built = level_indices(levels, len(scales)) if output == 'pyramid' else (0,)
        self.grid = tuple(grid) if isinstance(grid, (tuple, list)) else (grid, grid)
        if len(self.grid) != 2 or not all(isinstance(side, int) and side > 0 for side in self.grid):
            raise ValueError(f'grid={grid!r}: give the number of parts along each side, such as 4, or (height, width)')
        self.policy = SelectionPolicy.of(selection)
        if self.policy.choose_tap and num_taps != 1:
            raise ValueError(f'choose_tap=True chooses one tap, and the neck is set up for {num_taps}: set num_taps=1')
        self.in_channels, self.num_taps, self.output = in_channels, num_taps, output
        sources = self.policy.num_timesteps * num_taps  # timestep by timestep, as the backbone gives them
        discarded = per_tap(discard_channels, num_taps, in_channels)
        self.groups = num_taps if output == 'pyramid' else 1  # what is fused on its own
        self.norms = nn.ModuleList([normalise(norm, in_channels, discarded[k % num_taps]) for k in range(sources)])
        fused = [fuse(fusion, in_channels, sources // self.groups, num_heads) for _ in range(self.groups)]
        self.fusions, width = nn.ModuleList([module for module, _ in fused]), fused[0][1]
        if output == 'pyramid':
            self.levels = nn.ModuleList([rescale(width, scale) for scale in scales])
            for k in set(range(len(scales))) - set(self.built):  # identities, so that the others keep their names
                self.levels[k] = nn.Identity()
                if self.groups > 1:
                    self.fusions[k] = nn.Identity()
        self.grid = self.grid if pool == 'grid' else (1, 1)
        if output == 'vector' and pool == 'attention':
            self.pool = AttentionPool(width, num_heads)
        else:
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(self.grid), nn.Flatten())  # (B, W, gh, gw) -> (B, W gh gw)

    def forward(self, maps):
        """Shapes the features for the head.

        Args:
            maps (tuple[Tensor]): Per timestep and tap (B, D, h, w), as DiTBackbone gives them: all taps of the first timestep,
                then all of the second.

        Returns:
            tuple[Tensor | None]: The levels (B, W, scale h, scale w) with None for those that are not built, or one map
                (B, W, h, w), or one vector (B, W), with pool='grid' (B, W * grid squared), all contiguous. W is D, and with
                fusion='concat' D times the number of maps that are fused: timesteps for a pyramid, else timesteps x taps.

        Raises:
            ValueError: Other maps than the config says, or smaller ones than ``grid``.
        """
        found = [m.shape[1] for m in maps]
        if found != [self.in_channels] * len(self.norms):
            raise ValueError(f'the backbone gives {len(found)} maps of {found} channels and the neck is set up for '
                             f'{self.num_taps} taps of {self.in_channels} at {self.policy.num_timesteps} timesteps: set '
                             'in_channels and num_taps of AutoTimestepNeck, and num_timesteps of its selection, to what the '
                             'backbone gives')
        if torch.is_grad_enabled() and not self.training:
            # Grad-CAM asks for gradients at the maps, and a frozen DiT gives maps without.
            maps = [m if m.requires_grad else m.detach().requires_grad_() for m in maps]
        maps = [norm(m) for norm, m in zip(self.norms, maps, strict=True)]
        used = self.built if self.groups > 1 else (0,)
        fused = {k: self.fusions[k](maps[k::self.groups]) for k in used}
        if self.output == 'pyramid':
            return tuple(level(fused[k % self.groups]).contiguous() if k in self.built else None
                         for k, level in enumerate(self.levels))
        joined = fused[0]
        if self.output == 'map':
            return (joined.contiguous(),)
        if any(side < parts for side, parts in zip(joined.shape[-2:], self.grid, strict=True)):
            raise ValueError(f'a map of {joined.shape[-2]}x{joined.shape[-1]} cells cannot be pooled to {self.grid[0]}x'
                             f'{self.grid[1]} parts: lower grid of AutoTimestepNeck, or give larger images')
        return (self.pool(joined),)


def level_indices(levels: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Indices of levels, in order and from 0; all where there are none."""
    found = sorted({level % count for level in levels if -count <= level < count}) if levels is not None else range(count)
    if not found or levels is not None and len(found) != len(levels):
        raise ValueError(f'levels={levels}: name different ones of the {count} levels that scales has, or None for all')
    return tuple(found)
