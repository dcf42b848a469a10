"""DiTBackbone: a diffusion transformer where a ResNet or a ViT stood."""
import copy
import functools
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmaselect.extract import TAPS, Extractor
from mmaselect.extract.fold import fold, foldable
from mmaselect.extract.numbers import check_count, check_timesteps, several
from mmaselect.extract.shards import check_vae
from mmaselect.registry import MODELS

from .frozen import Reference, check_options, freeze, leave_out_frozen, load_weights, take_reference
from .layer_decay import layer_of
from .origin import Origin
from .recall import Recall


@MODELS.register_module()
class DiTBackbone(BaseModule):
    """Features of a pretrained DiT at a chosen diffusion timestep.

    It is *open* until ``select`` chooses the timestep: the argument ``timestep``, a checkpoint or ``AutoTimestepHook`` call it.
    ``extractor`` holds a ViT (``extract.fold``), which ``select`` fills with weights: its parameters and their names are the same
    before and after, for the optimizer, DDP and averaged models. The whole DiT is no part of the module and is let go at the
    choice. Families that do not fold, DiTs with adapters and fold=False have the whole DiT in ``extractor`` throughout.
    Persistent buffers hold the choice: ``timestep``, and ``tap`` where the hook chose one. A checkpoint holds what was trained,
    and a reference to ``pretrained`` for the rest; see ``frozen``.

    Args:
        pretrained (str | None): Folder or Hugging Face hub id in DiTPipeline layout. Its weights are loaded at once.
        arch (dict | None): In place of ``pretrained``: sizes of a DiT with random weights; see ``extract.loading.from_arch``.
        taps (Sequence[tuple[int, str]]): Features to return, as (block, name); see ``extract.TAPS``.
        timestep (int | Sequence[int] | None): A fixed training timestep, 0 the cleanest, or several, as in DDPM-seg (Baranchuk et
            al. 2022, arXiv:2112.03126). None leaves the choice open.
        num_timesteps (int | None): How many timesteps there are. By default as many as ``timestep`` names, or one.
        noise (str): 'seeded' (the same noise for every image), 'random' (fresh noise while training, seeded otherwise) or 'none'.
        seed (int): Of the seeded noise.
        noise_draws (int): Draws of the noise that features are averaged over, as in DIFT (Tang et al. 2023, arXiv:2306.03881).
        pos_scale (str | None): 'interpolate' or 'extrapolate': positions on other grids than the training's; see ``Extractor``.
        frozen (bool): Whether the DiT is left as it is. The VAE always is.
        recall (float | None): GiB of main memory for the features of training images, which a frozen DiT then computes once.
        lora (dict | None): Trains adapters in the frozen DiT: options of ``extract.lora.add_lora``, such as dict(r=16, alpha=16).
        with_cp (bool): Checkpointing of activations while the DiT is trained: less memory, about a third more time.
        fold (bool): Whether it runs as a ViT. False keeps embedders and modulation, which are then trained too.
        compile (bool | dict): Whether ``torch.compile`` compiles the blocks, or its options; torch 2.5 and newer.
        latents (str | None): Folder that tools/cache_latents.py wrote: the input is then latents, from ``LoadLatents``.
        vae_dtype (str | None): 'float32' or 'bfloat16', in which the VAE computes; None leaves it as it was loaded.
        vae_pixels (int | None): At most so many image pixels go through the VAE at a time, which bounds its memory.
        variant, revision, dtype (str | None): Of the files of ``pretrained``; see ``extract.loading.from_pretrained``.
        init_cfg (dict | None): MMEngine's.

    Raises:
        ValueError: Options that are unknown or exclude each other, or taps or timesteps that do not exist.
        FileNotFoundError: The checkpoint is not there or lacks a part.
        ImportError: ``lora`` without peft.
    """

    def __init__(self, pretrained=None, arch=None, taps=((-1, 'hidden'),), timestep=None, num_timesteps=None, noise='seeded',
                 seed=0, noise_draws=1, pos_scale=None, frozen=True, recall=None, lora=None, with_cp=False, fold=True,
                 compile=False, latents=None, vae_dtype=None, vae_pixels=None, variant=None, revision=None, dtype=None,
                 init_cfg=None):
        super().__init__(init_cfg)
        check_count(1 if num_timesteps is None else num_timesteps, 'num_timesteps')
        check_options(frozen, lora, recall, noise, noise_draws)
        self.origin = Origin(pretrained, arch, pos_scale, trained=not frozen, variant=variant, revision=revision, dtype=dtype)
        self.extractor = self.origin.extractor(taps, vae_dtype=vae_dtype, chunk_pixels=vae_pixels)
        self.extractor.checkpointing = with_cp
        if compile is not False:
            self.extractor.compile(**({} if compile is True else compile))
        self.taps = self.extractor.taps  # those of the config, which decide what the ViT has
        self.dtype, self.latents, self._latents_checked = dtype, latents, False
        self.noise, self.seed, self.noise_draws, self.recall = noise, seed, noise_draws, recall and Recall(recall)
        given = () if timestep is None else several(timestep)
        self.num_timesteps = len(given or [-1]) if num_timesteps is None else num_timesteps
        self.fixed = given and check_timesteps(given, len(self.extractor.process), self.num_timesteps)
        self.frozen = frozen and lora is None  # whether nothing in the DiT is trained
        self.folds = fold and lora is None and foldable(self.extractor.family)
        self.timesteps = ()  # all chosen ones in their order: the buffer's values where reading them does not wait for the GPU
        # A single one has no dimension, as in checkpoints from when there was but one.
        self.register_buffer('timestep', torch.full((self.num_timesteps,) if self.num_timesteps > 1 else (), -1))
        self.register_buffer('tap', torch.tensor([-1, -1]))  # block and place in TAPS; -1 leaves the taps of the config
        self._register_state_dict_hook(leave_out_frozen)
        if not self.frozen:
            self.reference()  # before weights are trained
        if self.folds:
            self.origin.hold(self.extractor.family)
            self.extractor.fold(self.fixed or tuple(range(self.num_timesteps)))
            if not self.fixed:
                self.extractor.family.timesteps = ()
        self.trained = freeze(self.extractor, frozen, lora)  # before the Runner wraps the model: DDP waits for their gradients
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
            ValueError: Timesteps or a tap that there are not, or the ViT is at others and the whole DiT is not to be had.
        """
        timesteps = check_timesteps(several(timestep), len(self.extractor.process), self.num_timesteps)
        if tap is not None:
            self.extractor.set_taps([tap])
            (block, name), = self.extractor.taps
            self.tap.copy_(torch.tensor([block, list(TAPS).index(name)]))
        if self.folds and timesteps != self.extractor.timesteps:
            vit = fold(self.unfolded().family, self.extractor.process, timesteps, self.taps)
            self.extractor.family.load_state_dict(vit.state_dict())
            self.extractor.family.timesteps = timesteps
        if self.origin.holds:
            self.reference()  # before its weights are let go
            self.origin.let_go()
        self.note(timesteps)

    @property
    def is_open(self) -> bool:
        """Whether the ViT waits for its weights."""
        return self.extractor.timesteps == ()

    def unfolded(self) -> Extractor:
        """An extractor that runs at every timestep, with taps of its own; its weights are the backbone's.

        Raises:
            ValueError: The DiT was folded, and ``pretrained`` does not have its weights: they are trained, loaded or random.
        """
        whole = copy.copy(self.extractor)
        if self.folds:
            dit = self.origin.dit().requires_grad_(False).eval().to(next(self.extractor.family.parameters()))
            whole._modules = {**self.extractor._modules, 'family': dit}
        return whole

    def reference(self) -> Reference | None:
        """What stands in checkpoints for the weights of ``pretrained``; see ``Origin.reference``."""
        return self.origin.reference(lambda: self.extractor if self.extractor.timesteps is None else self.unfolded())

    def init_weights(self):
        """MMEngine's. A training needs the reference, and has to have it before FSDP takes the weights apart."""
        super().init_weights()
        self.reference()

    def apply(self, fn):
        """As nn.Module's, but a model's ``init_cfg``, by MMEngine's initialisers, does not reach a pretrained or frozen DiT."""
        if fn.__module__ == 'mmengine.model.weight_init' and (self.origin.pretrained is not None or self.frozen):
            return self
        return super().apply(fn)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, D, h, w) of features of images (B, 3, H, W) in [-1, 1], or of their cached latents (B, C, h, w): all taps at
        the first timestep, as listed or chosen, then all at the second.

        Raises:
            RuntimeError: No timestep is chosen.
            ValueError: Not what is expected, or the latents are another VAE's.
        """
        if not self.timesteps:
            raise RuntimeError('DiTBackbone has no timestep yet. Either fix one (backbone=dict(timestep=...)), or load a '
                               'checkpoint that has one, or let AutoTimestepHook choose it '
                               "(custom_hooks=[dict(type='mmaselect.AutoTimestepHook')] with an AutoTimestepNeck)")
        noise = 'seeded' if self.noise == 'random' and not self.training else self.noise
        if self.latents is not None and not self._latents_checked:  # now, since a checkpoint may have had another VAE
            check_vae(self.latents, self.extractor.encoder)
            self._latents_checked = True
        options = dict(t=self.timesteps, noise=noise, seed=self.seed, draws=self.noise_draws)
        run = functools.partial(self.extractor if self.latents is None else self.extractor.from_latents, **options)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.recall(run, images, (options, self.extractor.taps)) if self.recall and self.training else run(images)
        return maps if self.dtype is None else tuple(m.to(images.dtype) for m in maps)  # the head has weights of its own

    def train(self, mode: bool = True):
        """A frozen DiT stays in evaluation mode; the VAE always does."""
        super().train(mode)
        self.extractor.train(mode and not self.frozen)
        return self

    def get_layer_depth(self, name: str, prefix: str = '') -> tuple[int, int]:
        """The layer of a parameter and the number of layers, as of mmpretrain's backbones; see ``layer_decay.layer_of``."""
        return layer_of(self.extractor, name, prefix)

    def note(self, timesteps: tuple[int, ...]):
        self.timestep.copy_(torch.tensor(timesteps or [-1] * self.num_timesteps).view_as(self.timestep))
        self.timesteps = timesteps

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # MMEngine loads module by module, so this, and not load_state_dict, sees a checkpoint's choice.
        reference = take_reference(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        load_weights(self, state_dict, prefix, reference)
        if self.recall:
            self.recall.clear()
