"""DiTBackbone: a diffusion transformer where a ResNet or a ViT stood."""
import contextlib
import warnings

import torch
from mmengine.model import BaseModule

from mmaselect.extract import TAPS, FeatureExtractor
from mmaselect.extract.draws import check_noise
from mmaselect.registry import MODELS


@MODELS.register_module()
class DiTBackbone(BaseModule):
    """Features of a pretrained DiT at a chosen diffusion timestep.

    The timestep is state: a persistent buffer, so that checkpoints, inference APIs and ``--resume`` carry it. It is set by
    ``timestep``, by a loaded checkpoint, or by ``AutoTimestepHook``. So is the tap where the neck lets the hook choose it.

    There may be several timesteps, in the order in which they are listed or were chosen. The backbone then gives all taps at the
    first timestep, then all taps at the second, and so on.

    Args:
        pretrained (str | None): Folder or Hugging Face hub id in DiTPipeline layout. Its weights are loaded at once.
        arch (dict | None): In place of ``pretrained``: sizes of a DiT with random weights; see ``extract.loading.from_arch``.
        taps (Sequence[tuple[int, str]]): Features to return, as (block, name); see ``extract.TAPS``. Not changed.
        timestep (int | Sequence[int] | None): A fixed training timestep, 0 the cleanest, or several, as in DDPM-seg (Baranchuk et
            al. 2022, arXiv:2112.03126). None leaves the choice open.
        num_timesteps (int | None): How many timesteps there are, which checkpoints have to agree with. By default as many as
            ``timestep`` names, or one.
        noise (str): 'seeded' (the same noise for every image, from the latent's shape and ``seed``), 'random' (fresh noise
            while training, seeded otherwise) or 'none'.
        seed (int): Of the seeded noise.
        noise_draws (int): The features are averaged over so many draws of the noise, as in DIFT (Tang et al. 2023,
            arXiv:2306.03881). They share latents and, as far as memory goes, forward passes; the seeded ones are the same for
            every image.
        pos_scale (str | None): 'interpolate' or 'extrapolate': positions on other grids than the training's; see
            ``FeatureExtractor``.
        frozen (bool): Whether the DiT is trained. The VAE never is.
        init_cfg (dict | None): MMEngine's.

    Raises:
        ValueError: Neither or both of ``pretrained`` and ``arch``, an unknown noise, several draws of none, taps or a timestep
            that do not exist, or another number of timesteps than ``num_timesteps``.
        FileNotFoundError: The checkpoint is not there or lacks a part.
    """

    def __init__(self, pretrained=None, arch=None, taps=((-1, 'hidden'),), timestep=None, num_timesteps=None, noise='seeded',
                 seed=0, noise_draws=1, pos_scale=None, frozen=True, init_cfg=None):
        super().__init__(init_cfg)
        if (pretrained is None) == (arch is None):
            raise ValueError('DiTBackbone needs either pretrained (a folder or hub id) or arch (sizes, random weights)')
        check_noise(noise, noise_draws)
        if num_timesteps is not None and num_timesteps < 1:
            raise ValueError(f'num_timesteps={num_timesteps}: there must be at least one')
        taps = [tuple(tap) if isinstance(tap, list) else tap for tap in taps]
        self.extractor = (FeatureExtractor.from_pretrained(pretrained, taps, pos_scale) if arch is None
                          else FeatureExtractor.from_arch(arch, taps, pos_scale))
        self.taps = self.extractor.taps  # those of the config
        self.fixed = None if timestep is None else _several(timestep)
        self.num_timesteps = len(self.fixed or [-1]) if num_timesteps is None else num_timesteps
        self.noise, self.seed, self.noise_draws, self.frozen = noise, seed, noise_draws, frozen
        # A single one has no dimension, as in checkpoints from when there was but one.
        self.register_buffer('timestep', torch.full((self.num_timesteps,) if self.num_timesteps > 1 else (), -1))
        self.register_buffer('tap', torch.tensor([-1, -1]))  # block and place in TAPS; -1 leaves the taps of the config
        if timestep is not None:
            self.select(timestep)
        # Before the Runner wraps the model: DDP waits for a gradient of everything that requires one.
        trained = [] if frozen else self.extractor.used_parameters()
        self.extractor.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self.train(self.training)

    @property
    def chosen(self):
        """The chosen timestep, the first where there are several, or None."""
        return next(iter(self.timesteps), None)

    @property
    def timesteps(self):
        """All chosen timesteps in their order, () where none are."""
        timesteps = tuple(self.timestep.reshape(-1).tolist())
        return timesteps if timesteps[0] >= 0 else ()

    def select(self, timestep, tap=None):
        """Sets the timestep, or several, and, where one is given, the tap (block, name) in place of the config's.

        Raises:
            ValueError: A timestep is not in the schedule or comes twice, there are others than ``num_timesteps``, or the model
                has no such tap.
        """
        steps, timesteps = len(self.extractor.process), _several(timestep)
        if len(timesteps) != self.num_timesteps or len(set(timesteps)) < len(timesteps):
            raise ValueError(f'timestep={timestep} does not name {self.num_timesteps} different timesteps, as num_timesteps says')
        for t in timesteps:
            if not 0 <= t < steps:
                raise ValueError(f'timestep={t} is not in [0, {steps - 1}], 0 the cleanest')
        self.timestep.copy_(torch.tensor(timesteps).view_as(self.timestep))
        if tap is not None:
            self.extractor.set_taps([tap])
            self.tap.copy_(torch.tensor([tap[0], list(TAPS).index(tap[1])]))

    def forward(self, images):
        """Maps of features, one per timestep and tap, each (B, D, h, w), of images (B, 3, H, W) in [-1, 1].

        Raises:
            RuntimeError: No timestep is chosen.
        """
        timesteps = self.timesteps
        if not timesteps:
            raise RuntimeError('DiTBackbone has no timestep yet. Either fix one (backbone=dict(timestep=...)), or load a '
                               'checkpoint that has one, or let AutoTimestepHook choose it '
                               "(custom_hooks=[dict(type='mmaselect.AutoTimestepHook')] with an AutoTimestepNeck)")
        noise = 'seeded' if self.noise == 'random' and not self.training else self.noise
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            return self.extractor(images, timesteps, noise=noise, seed=self.seed, draws=self.noise_draws)

    def train(self, mode=True):
        """A frozen DiT stays in evaluation mode; the VAE always does."""
        super().train(mode)
        if self.frozen:
            self.extractor.eval()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # mmengine loads module by module, so this, and not load_state_dict, sees a checkpoint's timestep. Of a wrong number torch
        # would take the first, or warn.
        given = state_dict.get(f'{prefix}timestep', self.timestep)
        if given.shape != self.timestep.shape:
            raise ValueError(f'the checkpoint has {given.numel()} timesteps ({prefix}timestep is {given.tolist()}) and this '
                             f'backbone is set up for {self.num_timesteps}: set num_timesteps of the backbone and timesteps of '
                             f'AutoTimestepNeck to {given.numel()}, or delete that key from the checkpoint to choose anew')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        block, name = self.tap.tolist()
        taps = self.taps if block < 0 else [(block, list(TAPS)[name])]
        if not self.frozen and tuple(taps) != self.extractor.taps:
            raise ValueError(f'the checkpoint was made with the tap {taps[0]}, which was chosen, and a DiT that is trained needs '
                             f'its taps in the config: set backbone.taps={taps}')
        self.extractor.set_taps(taps)
        if self.fixed is not None and self.timesteps != self.fixed:
            if self.timesteps:
                found, fixed = (', '.join(map(str, several)) for several in (self.timesteps, self.fixed))
                warnings.warn(f'the checkpoint was made at timestep {found} and the config fixes timestep={fixed}, which is used',
                              stacklevel=2)
            self.select(self.fixed)


def _several(timestep):
    return tuple(timestep) if isinstance(timestep, (list, tuple)) else (timestep,)
