"""DiTBackbone: a diffusion transformer where a ResNet or a ViT stood."""
import contextlib
import copy
import functools
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmaselect.extract import TAPS, Extractor
from mmaselect.extract.draws import check_noise
from mmaselect.extract.fold import fold, foldable
from mmaselect.extract.lora import add_lora
from mmaselect.extract.numbers import is_count, is_timestep
from mmaselect.extract.shards import check_vae
from mmaselect.registry import MODELS

from .frozen import Reference, Shared, leave_out_frozen, load_weights, take_reference

INITIALISERS = 'mmengine.model.weight_init'  # where init_cfg's functions are


@MODELS.register_module()
class DiTBackbone(BaseModule):
    """Features of a pretrained DiT at a chosen diffusion timestep.

    It has two states. *Open*: no timestep is chosen yet, and ``unfolded`` gives the whole DiT to be swept. *Chosen*: it runs.
    ``select`` leads from open to chosen; the argument ``timestep``, a checkpoint and ``AutoTimestepHook`` call it.

    ``extractor`` runs. It holds a ViT (``extract.fold``), which ``select`` fills with weights. Its parameters and their names are
    the same in both states, for the optimizer, DDP and averaged models. The whole DiT is no part of the module and is let go at
    the choice. Families that do not fold, DiTs with adapters and fold=False have the whole DiT in ``extractor`` in both states.

    Persistent buffers hold the choice: ``timestep``, and ``tap`` where the hook chose one. A checkpoint holds what was trained,
    and a reference to ``pretrained`` for the rest; see ``frozen``. An init_cfg of the model around it does not reach its weights.

    The maps come timestep by timestep, in the order listed or chosen: all taps at the first, then all at the second.

    Args:
        pretrained (str | None): Folder or Hugging Face hub id in DiTPipeline layout. Its weights are loaded at once.
        arch (dict | None): In place of ``pretrained``: sizes of a DiT with random weights; see ``extract.loading.from_arch``.
        taps (Sequence[tuple[int, str]]): Features to return, as (block, name); see ``extract.TAPS``.
        timestep (int | Sequence[int] | None): A fixed training timestep, 0 the cleanest, or several, as in DDPM-seg (Baranchuk et
            al. 2022, arXiv:2112.03126). None leaves the choice open.
        num_timesteps (int | None): How many timesteps there are. By default as many as ``timestep`` names, or one.
        noise (str): 'seeded' (the same noise for every image), 'random' (fresh noise while training, seeded otherwise) or 'none'.
        seed (int): Of the seeded noise.
        noise_draws (int): The features are averaged over so many draws of the noise, as in DIFT (Tang et al. 2023,
            arXiv:2306.03881).
        pos_scale (str | None): 'interpolate' or 'extrapolate': positions on other grids than the training's; see ``Extractor``.
        frozen (bool): Whether the DiT is left as it is. The VAE always is.
        lora (dict | None): Trains adapters in the frozen DiT: options of ``extract.lora.add_lora``, such as dict(r=16, alpha=16,
            targets=['to_q', 'to_v']).
        with_cp (bool): Checkpointing of activations while the DiT is trained: less memory, about a third more time.
        fold (bool): Whether it runs as a ViT. False keeps embedders and modulation, which are then trained too.
        compile (bool | dict): Whether ``torch.compile`` compiles the blocks, or its options; torch 2.5 and newer.
        latents (str | None): Folder that tools/cache_latents.py wrote: the input is then latents, from ``LoadLatents``.
        vae_dtype (str | None): 'float32' or 'bfloat16', in which the VAE computes; None leaves it as it was loaded.
        vae_pixels (int | None): At most so many image pixels go through the VAE at a time, which bounds its memory.
        variant, revision, dtype (str | None): Of the files of ``pretrained``; see ``extract.loading.from_pretrained``.
        init_cfg (dict | None): MMEngine's.

    Raises:
        ValueError: Neither or both of ``pretrained`` and ``arch``, an unknown noise, several draws of none, taps or a timestep
            that do not exist, another number of timesteps than ``num_timesteps``, or ``lora`` together with frozen=False.
        FileNotFoundError: The checkpoint is not there or lacks a part.
        ImportError: ``lora`` without peft.
    """

    def __init__(self, pretrained=None, arch=None, taps=((-1, 'hidden'),), timestep=None, num_timesteps=None, noise='seeded',
                 seed=0, noise_draws=1, pos_scale=None, frozen=True, lora=None, with_cp=False, fold=True, compile=False,
                 latents=None, vae_dtype=None, vae_pixels=None, variant=None, revision=None, dtype=None, init_cfg=None):
        super().__init__(init_cfg)
        if (pretrained is None) == (arch is None):
            raise ValueError('DiTBackbone needs either pretrained (a folder or hub id) or arch (sizes, random weights)')
        check_noise(noise, noise_draws)
        if num_timesteps is not None and not is_count(num_timesteps):
            raise ValueError(f'num_timesteps={num_timesteps!r}: an integer, 1 or more')
        if lora is not None and not frozen:
            raise ValueError('lora trains adapters and frozen=False all weights of the DiT: leave out one of the two')
        taps = [tuple(tap) if isinstance(tap, list) else tap for tap in taps] if isinstance(taps, (list, tuple)) else taps
        files = dict(variant=variant, revision=revision, dtype=dtype)
        self.dtype = dtype
        if arch is not None and any(files.values()):
            raise ValueError(f'{files}: these are of the files of pretrained, and arch has none')
        self._make = (functools.partial(Extractor.from_arch, arch) if pretrained is None else
                      functools.partial(Extractor.from_pretrained, pretrained, **files))
        self.extractor = self._make(taps, pos_scale, vae_dtype=vae_dtype, chunk_pixels=vae_pixels)
        self.extractor.encoder.drop_decoder()
        self.extractor.checkpointing = with_cp
        if compile is not False:
            self.extractor.compile(**({} if compile is True else compile))
        self.taps = self.extractor.taps  # those of the config, which decide what the ViT has
        self.pretrained, self.revision, self.pos_scale = pretrained, revision, pos_scale
        self.latents, self._latents_checked = latents, False
        self.noise, self.seed, self.noise_draws = noise, seed, noise_draws
        self.fixed = None if timestep is None else _several(timestep)
        self.num_timesteps = len(self.fixed or [-1]) if num_timesteps is None else num_timesteps
        self.frozen = frozen and lora is None  # whether nothing in the DiT is trained
        self.folds = fold and lora is None and foldable(self.extractor.family)
        self.timesteps = ()  # all chosen ones in their order: the buffer's values where reading them does not wait for the GPU
        # A single one has no dimension, as in checkpoints from when there was but one.
        self.register_buffer('timestep', torch.full((self.num_timesteps,) if self.num_timesteps > 1 else (), -1))
        self.register_buffer('tap', torch.tensor([-1, -1]))  # block and place in TAPS; -1 leaves the taps of the config
        self._register_state_dict_hook(leave_out_frozen)
        self.refers, self._reference, self._whole = pretrained is not None, None, None
        if not self.frozen or self.folds and self.fixed is not None:
            self.reference()  # before weights are trained or let go
        if self.folds:
            whole = self.extractor.family
            self.extractor.fold(self._check_timesteps(tuple(range(self.num_timesteps)) if self.fixed is None else self.fixed))
            if self.fixed is None:
                self.reopen(whole)
        trained = (add_lora(self.extractor, **lora) if lora is not None else [] if frozen else
                   list(self.extractor.family.parameters()) if self.folds else self.extractor.used_parameters())
        self.requires_grad_(False)
        for parameter in trained:  # before the Runner wraps the model: DDP waits for a gradient of each
            parameter.requires_grad_(True)
        self.trained = {name for name, p in self.extractor.named_parameters() if p.requires_grad}
        if timestep is not None:
            self.select(timestep)
        self.train(self.training)

    @property
    def chosen(self) -> int | None:
        """The chosen timestep, the first where there are several, or None."""
        return next(iter(self.timesteps), None)

    def select(self, timestep: int | Sequence[int], tap: tuple[int, str] | None = None):
        """Chooses the timestep, or several, and, where one is given, the tap (block, name) in place of the config's.

        Raises:
            ValueError: A timestep is not in the schedule or comes twice, there are others than ``num_timesteps``, the ViT lacks
                the tap, or it is at other timesteps and the whole DiT is not to be had.
        """
        timesteps = self._check_timesteps(_several(timestep))
        if tap is not None:
            self.extractor.set_taps([tap])
            (block, name), = self.extractor.taps
            self.tap.copy_(torch.tensor([block, list(TAPS).index(name)]))
        if self.folds and timesteps != self.extractor.timesteps:
            vit = fold(self._dit(), self.extractor.process, timesteps, self.taps)
            self.extractor.family.load_state_dict(vit.state_dict())
            self.extractor.family.timesteps = timesteps
        if self._whole is not None:
            self.reference()  # before its weights are let go
            self._whole = None
        self.note(timesteps)

    @property
    def is_open(self) -> bool:
        """Whether the ViT waits for its weights."""
        return self.extractor.timesteps == ()

    def reopen(self, whole: nn.Module):
        """Takes the weights of a whole DiT, to be folded by ``select``."""
        self._whole, self.extractor.family.timesteps = Shared(whole), ()

    def unfolded(self) -> Extractor:
        """An extractor that runs at every timestep, with taps of its own; its weights are the backbone's.

        Raises:
            ValueError: The DiT was folded and its weights are not those of ``pretrained``: it was trained, another checkpoint was
                loaded, or they are random.
        """
        whole = copy.copy(self.extractor)
        whole._modules = {**self.extractor._modules, **({'family': self._dit()} if self.folds else {})}
        return whole

    def _dit(self):
        """The whole DiT, loaded anew where it was let go."""
        if self._whole is None:
            if not self.frozen or not self.refers:
                raise ValueError('the DiT is folded at its timestep and cannot run at another, since its weights are not those '
                                 f'of pretrained={self.pretrained!r}: set backbone.fold=False where another may be wanted')
            self._whole = Shared(self._make(pos_scale=self.pos_scale).family)
        return self._whole.value.requires_grad_(False).eval().to(next(self.extractor.family.parameters()))

    def reference(self) -> Reference | None:
        """What stands in checkpoints for the weights of ``pretrained``; None where these have been replaced.

        Hashing takes seconds for a large DiT, so it is done when it is first asked for, and once.
        """
        if self.refers and self._reference is None:
            whole = self.extractor if self.extractor.timesteps is None else self.unfolded()
            self._reference = Reference.of(self.pretrained, whole, self.revision)
        return self._reference if self.refers else None

    def init_weights(self):
        """MMEngine's. A training needs the reference, and has to have it before FSDP takes the weights apart."""
        super().init_weights()
        self.reference()

    def apply(self, fn):
        """As nn.Module's, but MMEngine's initialisers, by which an ``init_cfg`` of the whole model replaces the weights of all
        layers of a kind, leave a DiT alone that is pretrained or frozen."""
        if fn.__module__ == INITIALISERS and (self.pretrained is not None or self.frozen):
            return self
        return super().apply(fn)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of features, one per timestep and tap, each (B, D, h, w), of images (B, 3, H, W) in [-1, 1], or of their cached
        latents (B, C, h, w).

        Raises:
            RuntimeError: No timestep is chosen.
            ValueError: Not what is expected, or the latents are another VAE's.
        """
        if not self.timesteps:
            raise RuntimeError('DiTBackbone has no timestep yet. Either fix one (backbone=dict(timestep=...)), or load a '
                               'checkpoint that has one, or let AutoTimestepHook choose it '
                               "(custom_hooks=[dict(type='mmaselect.AutoTimestepHook')] with an AutoTimestepNeck)")
        noise = 'seeded' if self.noise == 'random' and not self.training else self.noise
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            options = dict(noise=noise, seed=self.seed, draws=self.noise_draws)
            if self.latents is not None and not self._latents_checked:  # now, since a checkpoint may have had another VAE
                check_vae(self.latents, self.extractor.encoder)
                self._latents_checked = True
            run = self.extractor if self.latents is None else self.extractor.from_latents
            maps = run(images, self.timesteps, **options)
        if self.dtype is None:
            return maps
        return tuple(m.to(images.dtype) for m in maps)  # neck and head have weights of their own

    def train(self, mode: bool = True):
        """A frozen DiT stays in evaluation mode; the VAE always does."""
        super().train(mode)
        if self.frozen:
            self.extractor.eval()
        return self

    def get_layer_depth(self, name: str, prefix: str = '') -> tuple[int, int]:
        """The layer of a parameter and the number of layers, by which learning rates decay; as mmpretrain's backbones have it.

        Layer 0 comes before the blocks, block i is layer i + 1, and the last layer is what follows the backbone. Blocks after
        the last tap do not count. ``name`` is the parameter's in the whole model, and ``prefix`` the backbone's: 'backbone.'.
        """
        layers = self.extractor.taps[-1][0] + 3
        if not name.startswith(prefix):
            return layers - 1, layers
        block = self.extractor.family.block_of(name)
        return 0 if block is None else block + 1, layers

    def note(self, timesteps):
        self.timestep.copy_(torch.tensor(timesteps or [-1] * self.num_timesteps).view_as(self.timestep))
        self.timesteps = timesteps

    def _check_timesteps(self, timesteps):
        steps = len(self.extractor.process)
        for t in timesteps:
            if not is_timestep(t, steps):
                raise ValueError(f'timestep={t!r} is no integer in [0, {steps - 1}], 0 the cleanest')
        if len(timesteps) != self.num_timesteps or len(set(timesteps)) < len(timesteps):
            given = timesteps[0] if len(timesteps) == 1 else list(timesteps)
            raise ValueError(f'timestep={given} does not name {self.num_timesteps} different timesteps, as num_timesteps says')
        return timesteps

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # MMEngine loads module by module, so this, and not load_state_dict, sees a checkpoint's choice.
        reference = take_reference(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        load_weights(self, state_dict, prefix, reference)


def _several(timestep):
    return tuple(timestep) if isinstance(timestep, (list, tuple)) else (timestep,)
