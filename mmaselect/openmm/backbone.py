"""DiTBackbone: a diffusion transformer where a ResNet or a ViT stood."""
import contextlib
import warnings

import torch
from mmengine.model import BaseModule

from mmaselect.extract import TAPS, FeatureExtractor
from mmaselect.registry import MODELS


@MODELS.register_module()
class DiTBackbone(BaseModule):
    """Features of a pretrained DiT at a chosen diffusion timestep.

    The timestep is state: a persistent buffer, so that checkpoints, inference APIs and ``--resume`` carry it. It is set by
    ``timestep``, by a loaded checkpoint, or by ``AutoTimestepHook``. So is the tap where the neck lets the hook choose it.

    Args:
        pretrained (str | None): Folder or Hugging Face hub id in DiTPipeline layout. Its weights are loaded at once.
        arch (dict | None): In place of ``pretrained``: sizes of a DiT with random weights; see ``extract.loading.from_arch``.
        taps (Sequence[tuple[int, str]]): Features to return, as (block, name); see ``extract.TAPS``. Not changed.
        timestep (int | None): A fixed training timestep, 0 the cleanest. None leaves the choice open.
        noise (str): 'seeded' (the same noise for every image, from the latent's shape and ``seed``), 'random' (fresh noise
            while training, seeded otherwise) or 'none'.
        seed (int): Of the seeded noise.
        pos_scale (str | None): 'interpolate' or 'extrapolate': positions on other grids than the training's; see
            ``FeatureExtractor``.
        frozen (bool): Whether the DiT is trained. The VAE never is.
        init_cfg (dict | None): MMEngine's.

    Raises:
        ValueError: Neither or both of ``pretrained`` and ``arch``, an unknown noise, taps or a timestep that do not exist.
        FileNotFoundError: The checkpoint is not there or lacks a part.
    """

    def __init__(self, pretrained=None, arch=None, taps=((-1, 'hidden'),), timestep=None, noise='seeded', seed=0,
                 pos_scale=None, frozen=True, init_cfg=None):
        super().__init__(init_cfg)
        if (pretrained is None) == (arch is None):
            raise ValueError('DiTBackbone needs either pretrained (a folder or hub id) or arch (sizes, random weights)')
        if noise not in ('seeded', 'random', 'none'):
            raise ValueError(f"noise is 'seeded', 'random' or 'none', not {noise!r}")
        taps = [tuple(tap) if isinstance(tap, list) else tap for tap in taps]
        self.extractor = (FeatureExtractor.from_pretrained(pretrained, taps, pos_scale) if arch is None
                          else FeatureExtractor.from_arch(arch, taps, pos_scale))
        self.taps = self.extractor.taps  # those of the config
        self.fixed = timestep
        self.noise, self.seed, self.frozen = noise, seed, frozen
        self.register_buffer('timestep', torch.tensor(-1))
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
        """The chosen timestep, or None."""
        timestep = int(self.timestep)
        return None if timestep < 0 else timestep

    def select(self, timestep, tap=None):
        """Sets the timestep and, where one is given, the tap (block, name) in place of the config's.

        Raises:
            ValueError: The timestep is not in the schedule, or the model has no such tap.
        """
        steps = len(self.extractor.process)
        if not 0 <= timestep < steps:
            raise ValueError(f'timestep={timestep} is not in [0, {steps - 1}], 0 the cleanest')
        self.timestep.fill_(timestep)
        if tap is not None:
            self.extractor.set_taps([tap])
            self.tap.copy_(torch.tensor([tap[0], list(TAPS).index(tap[1])]))

    def forward(self, images):
        """Maps of features, one per tap, each (B, D, h, w), of images (B, 3, H, W) in [-1, 1].

        Raises:
            RuntimeError: No timestep is chosen.
        """
        timestep = self.chosen
        if timestep is None:
            raise RuntimeError('DiTBackbone has no timestep yet. Either fix one (backbone=dict(timestep=...)), or load a '
                               'checkpoint that has one, or let AutoTimestepHook choose it '
                               "(custom_hooks=[dict(type='mmaselect.AutoTimestepHook')] with an AutoTimestepNeck)")
        noise = 'seeded' if self.noise == 'random' and not self.training else self.noise
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            return self.extractor(images, timestep, noise=noise, seed=self.seed)

    def train(self, mode=True):
        """A frozen DiT stays in evaluation mode; the VAE always does."""
        super().train(mode)
        if self.frozen:
            self.extractor.eval()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # mmengine loads module by module, so this, and not load_state_dict, sees a checkpoint's timestep.
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        block, name = self.tap.tolist()
        taps = self.taps if block < 0 else [(block, list(TAPS)[name])]
        if not self.frozen and tuple(taps) != self.extractor.taps:
            raise ValueError(f'the checkpoint was made with the tap {taps[0]}, which was chosen, and a DiT that is trained needs '
                             f'its taps in the config: set backbone.taps={taps}')
        self.extractor.set_taps(taps)
        if self.fixed is not None and self.chosen != self.fixed:
            if self.chosen is not None:
                warnings.warn(f'the checkpoint was made at timestep {self.chosen} and the config fixes timestep={self.fixed}, '
                              'which is used', stacklevel=2)
            self.select(self.fixed)
