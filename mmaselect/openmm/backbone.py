"""DiTBackbone: a diffusion transformer where a ResNet or a ViT stood."""
import contextlib
import re
import warnings

import torch
from mmengine.model import BaseModule

from mmaselect.extract import TAPS, Extractor, resolve
from mmaselect.extract.cache import check_vae
from mmaselect.extract.draws import check_noise
from mmaselect.extract.fold import fold, foldable, is_folded, restored, same_trunk
from mmaselect.extract.lora import add_lora
from mmaselect.registry import MODELS

DECODER = ('extractor.encoder.vae.decoder.', 'extractor.encoder.vae.post_quant_conv.')


@MODELS.register_module()
class DiTBackbone(BaseModule):
    """Features of a pretrained DiT at a chosen diffusion timestep.

    As long as no timestep is chosen the backbone holds the whole DiT, which can be swept over all of them. ``select``, which the
    argument ``timestep``, a loaded checkpoint or ``AutoTimestepHook`` calls, folds it into the ViT that it is at that timestep,
    and drops the rest (``extract.fold``). A DiT that is trained has its ViT (``vit``) from the start, for the optimizer and DDP
    to know, and the choice only fills it in.

    The choice is state: a persistent buffer, so that checkpoints, inference APIs and ``--resume`` carry it. So is the tap where
    the neck lets the hook choose it. A checkpoint may be folded or not; the backbone becomes what the checkpoint is at its
    timestep.

    There may be several timesteps, in the order in which they are listed or were chosen. The backbone then gives all taps at the
    first timestep, then all taps at the second, and so on. Its ViT has LayerNorms and LayerScales for each of them.

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
            ``Extractor``.
        frozen (bool): Whether the DiT is left as it is. The VAE always is.
        lora (dict | None): Trains adapters in the DiT, whose own weights stay frozen: the options of ``extract.lora.add_lora``,
            such as dict(r=16, alpha=16, targets=['to_q', 'to_v']).
        with_cp (bool): Where something in the DiT is trained, keep of each block only its input for the backward pass, and
            compute the rest anew: the same gradients, less memory, about a third more time.
        fold (bool): Whether to fold it at the choice. False keeps it whole, with its embedders and its modulation, which are
            then trained too; other families than DiT, and a DiT with adapters, are whole in any case.
        compile (bool | dict): Whether ``torch.compile`` compiles the blocks, or its options; torch 2.5 and newer.
        latents (str | None): Folder that tools/cache_latents.py wrote: what comes in is then not images but their latents,
            which ``LoadLatents`` gives, and the VAE does not run.
        vae_dtype (str | None): 'float32' or 'bfloat16', in which the VAE computes; None leaves it as it was loaded.
        vae_pixels (int | None): At most so many image pixels go through the VAE at a time, which bounds its memory.
        init_cfg (dict | None): MMEngine's.

    Raises:
        ValueError: Neither or both of ``pretrained`` and ``arch``, an unknown noise, several draws of none, taps or a timestep
            that do not exist, another number of timesteps than ``num_timesteps``, or ``lora`` together with frozen=False.
        FileNotFoundError: The checkpoint is not there or lacks a part.
        ImportError: ``lora`` without peft.
    """

    def __init__(self, pretrained=None, arch=None, taps=((-1, 'hidden'),), timestep=None, num_timesteps=None, noise='seeded',
                 seed=0, noise_draws=1, pos_scale=None, frozen=True, lora=None, with_cp=False, fold=True, compile=False,
                 latents=None, vae_dtype=None, vae_pixels=None, init_cfg=None):
        super().__init__(init_cfg)
        if (pretrained is None) == (arch is None):
            raise ValueError('DiTBackbone needs either pretrained (a folder or hub id) or arch (sizes, random weights)')
        check_noise(noise, noise_draws)
        if num_timesteps is not None and num_timesteps < 1:
            raise ValueError(f'num_timesteps={num_timesteps}: there must be at least one')
        if lora is not None and not frozen:
            raise ValueError('lora trains adapters and frozen=False all weights of the DiT: leave out one of the two')
        taps = [tuple(tap) if isinstance(tap, list) else tap for tap in taps]
        make, source = (Extractor.from_pretrained, pretrained) if arch is None else (Extractor.from_arch, arch)
        self.extractor = make(source, taps, pos_scale, vae_dtype=vae_dtype, chunk_pixels=vae_pixels)
        self.extractor.encoder.drop_decoder()
        if compile is not False:
            self.extractor.compile(**({} if compile is True else compile))
        self.taps = self.extractor.taps  # those of the config
        self.pretrained, self.pos_scale = pretrained, pos_scale
        self.fixed = None if timestep is None else _several(timestep)
        self.num_timesteps = len(self.fixed or [-1]) if num_timesteps is None else num_timesteps
        self.noise, self.seed, self.noise_draws = noise, seed, noise_draws
        self.frozen = frozen and lora is None  # whether nothing in the DiT is trained
        self.extractor.checkpointing = with_cp
        self.folds = fold and lora is None and foldable(self.extractor.family)
        self.latents, self._latents_checked = latents, False
        self.vit = None
        self.timesteps = ()  # all chosen ones in their order: the buffer's values where reading them does not wait for the GPU
        # A single one has no dimension, as in checkpoints from when there was but one.
        self.register_buffer('timestep', torch.full((self.num_timesteps,) if self.num_timesteps > 1 else (), -1))
        self.register_buffer('tap', torch.tensor([-1, -1]))  # block and place in TAPS; -1 leaves the taps of the config
        if timestep is not None:
            self.select(timestep)
        elif self.folds and not frozen:
            self.vit = self._folded(range(self.num_timesteps))
        self._freeze(lora)
        self.train(self.training)

    def _freeze(self, lora):
        # Before the Runner wraps the model: DDP waits for a gradient of everything that requires one.
        if self.frozen:
            trained = []
        elif lora is not None:
            trained = add_lora(self.extractor, **lora)
        else:
            trained = list(self.vit.parameters()) if self.vit else self.extractor.used_parameters()
        self.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    @property
    def chosen(self):
        """The chosen timestep, the first where there are several, or None."""
        return next(iter(self.timesteps), None)

    def select(self, timestep, tap=None):
        """Sets the timestep, or several, and, where one is given, the tap (block, name) in place of the config's, and folds the
        DiT.

        Raises:
            ValueError: A timestep is not in the schedule or comes twice, there are others than ``num_timesteps``, the model has
                no such tap, or it is folded at other timesteps and cannot be unfolded.
        """
        steps, timesteps = len(self.extractor.process), _several(timestep)
        if len(timesteps) != self.num_timesteps or len(set(timesteps)) < len(timesteps):
            raise ValueError(f'timestep={timestep} does not name {self.num_timesteps} different timesteps, as num_timesteps says')
        for t in timesteps:
            if not 0 <= t < steps:
                raise ValueError(f'timestep={t} is not in [0, {steps - 1}], 0 the cleanest')
        taps = self.extractor.taps if tap is None else resolve([tap], self.extractor.family.depth)
        if self.extractor.timesteps != timesteps or taps != self.extractor.taps:
            self.unfold()
            self.extractor.set_taps(taps)
            if self.folds:
                self._replace_family(self._folded(timesteps))
        if tap is not None:
            self.tap.copy_(torch.tensor([taps[0][0], list(TAPS).index(taps[0][1])]))
        self._note(timesteps)

    def unfold(self):
        """Makes the DiT whole again, by loading ``pretrained`` anew, so that it can be swept. It keeps its choice till then.

        Raises:
            ValueError: Its weights are not those of ``pretrained``: it was trained, or another checkpoint loaded, or they are
                random.
        """
        if self.extractor.timesteps is None:
            return
        whole, folded = None, self.extractor.family
        if self.frozen and self.pretrained is not None:
            whole = Extractor.from_pretrained(self.pretrained, pos_scale=self.pos_scale).family.to(next(folded.parameters()))
            again = fold(whole, self.extractor.process, folded.timesteps, self.extractor.taps)
        if whole is None or not same_trunk(again.state_dict(), folded.state_dict()):
            raise ValueError('the DiT is folded at its timestep and cannot run at another, since its weights are not those of '
                             f'pretrained={self.pretrained!r}: set backbone.fold=False where another may be wanted')
        self.extractor.family = whole.requires_grad_(False).eval()

    def forward(self, images):
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
            if self.latents is None:
                return self.extractor(images, self.timesteps, **options)
            if not self._latents_checked:  # at the first batch, since a checkpoint may have another VAE
                check_vae(self.latents, self.extractor.encoder)
                self._latents_checked = True
            return self.extractor.from_latents(images, self.timesteps, **options)

    def train(self, mode=True):
        """A frozen DiT stays in evaluation mode; the VAE always does."""
        super().train(mode)
        if self.frozen:
            self.extractor.eval()
        return self

    def get_layer_depth(self, name, prefix=''):
        """The layer of a parameter and the number of layers, by which learning rates decay; mmpretrain's backbones have it too.

        Layer 0 is what comes before the blocks, block i is layer i + 1, and the last layer is what follows the backbone.
        Blocks after the last tap do not count.

        Args:
            name (str): The parameter's, in the whole model.
            prefix (str): The backbone's in the whole model, such as 'backbone.'.

        Returns:
            tuple[int, int]: Layer and number of layers.
        """
        layers = self.extractor.taps[-1][0] + 3
        if not name.startswith(prefix):
            return layers - 1, layers
        block = re.search(r'\b(?:transformer_)?blocks\.(\d+)\.', name)
        return int(block[1]) + 1 if block else 0, layers

    def _note(self, timesteps):
        self.timestep.copy_(torch.tensor(timesteps).view_as(self.timestep))
        self.timesteps = timesteps

    def _folded(self, timesteps):
        return fold(self.extractor.family, self.extractor.process, timesteps, self.extractor.taps)

    def _replace_family(self, folded):
        """Runs a FoldedDiT from now on, in place of the one or of the whole DiT that was there."""
        before = self.extractor.family
        ours = self.vit or before
        del self.vit  # as None alone it would stay among the modules, which MMEngine's get_flops takes for one
        self.vit = None
        if ours.state_dict().keys() == folded.state_dict().keys():
            # Filled in, for the optimizer, DDP and an averaged model have these parameters.
            ours.load_state_dict(folded.state_dict())
            ours.timesteps = folded.timesteps
        else:
            ours = folded.requires_grad_(not self.frozen).train(before.training)
        self.extractor.family = ours
        if ours is not before:
            for parameter in before.parameters():  # an optimizer that was given frozen parameters would keep their memory
                parameter.data = parameter.data.new_empty(0)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # mmengine loads module by module, so this, and not load_state_dict, sees a checkpoint's choice. Of a wrong number of
        # timesteps torch would take the first, or warn.
        given = state_dict.get(f'{prefix}timestep', self.timestep)
        if given.shape != self.timestep.shape:
            raise ValueError(f'the checkpoint has {given.numel()} timesteps ({prefix}timestep is {given.tolist()}) and this '
                             f'backbone is set up for {self.num_timesteps}: set num_timesteps of the backbone and timesteps of '
                             f'AutoTimestepNeck to {given.numel()}, or delete that key from the checkpoint to choose anew')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        block, name = self.tap.tolist()
        taps = self.taps if block < 0 else ((block, list(TAPS)[name]),)
        if not self.frozen and taps != self.extractor.taps:
            raise ValueError(f'the checkpoint was made with the tap {taps[0]}, which was chosen, and a DiT that is trained needs '
                             f'its taps in the config: set backbone.taps={list(taps)}')
        stored = tuple(t for t in self.timestep.reshape(-1).tolist() if t >= 0)
        if self.fixed is not None and stored not in ((), self.fixed):
            warnings.warn(f'the checkpoint was made at timestep {_listed(stored)} and the config fixes '
                          f'timestep={_listed(self.fixed)}, which is used', stacklevel=2)
        self.timesteps = stored
        if self.fixed is not None:
            self._note(self.fixed)
        family = f'{prefix}extractor.family.'
        self._adopt({key[len(family):]: value for key, value in state_dict.items() if key.startswith(family)}, stored, taps)
        self.extractor.set_taps(taps)
        # What the modules below find of themselves: the VAE's decoder is in older checkpoints only, and ``vit`` is filled in at
        # the choice, whatever a checkpoint says. What the DiT takes from the checkpoint it has by now, unless it is whole.
        ours = {'extractor.family.': self.extractor.family, 'vit.': self.vit}
        if self.extractor.timesteps is None:
            del ours['extractor.family.']
        for key in [key for key in state_dict if key.startswith(tuple(prefix + part for part in (*DECODER, *ours)))]:
            del state_dict[key]
        for part, module in ours.items():
            if module is not None:
                state_dict.update({f'{prefix}{part}{name}': value for name, value in module.state_dict().items()})

    def _adopt(self, state, stored, taps):
        """Takes the stored ``state`` of a DiT, made at the timesteps ``stored``, and folds it at the choice where it is not yet.

        Raises:
            ValueError: It was folded, and at other timesteps or for other taps than are wanted.
        """
        folded = is_folded(state)
        if folded and (not self.folds or not stored):
            raise ValueError(f'the checkpoint has a DiT that was folded at timestep {_listed(stored) or "unknown"}, which cannot '
                             'be undone: it runs at that timestep alone, with backbone.fold=True')
        if not self.folds:
            return
        if not self.timesteps:
            self.unfold()  # a checkpoint from before the choice
            return
        if not state:  # a checkpoint of other parts of the model
            self.select(self.timesteps, None if taps == self.taps else taps[0])
            return
        whole, process = self.extractor.family, self.extractor.process
        made = restored(state, whole.config, process, stored if folded else self.timesteps, taps, pos_scale=whole.pos_scale)
        made = made.to(next(whole.parameters()))
        if not folded or stored == self.timesteps:
            self._replace_family(made)
        elif not same_trunk(made.state_dict(), whole.state_dict()):
            raise ValueError(f'the checkpoint was folded at timestep {_listed(stored)} after training and cannot run at '
                             f'timestep={_listed(self.fixed)}, which the config fixes: leave backbone.timestep open')


def _several(timestep):
    return tuple(timestep) if isinstance(timestep, (list, tuple)) else (timestep,)


def _listed(timesteps):
    return ', '.join(map(str, timesteps))
