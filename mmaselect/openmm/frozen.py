"""Frozen weights of a DiTBackbone in checkpoints: a reference stands for those of ``pretrained``; all others are stored."""
import json
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmaselect.extract import TAPS, Extractor
from mmaselect.extract.draws import check_noise
from mmaselect.extract.fingerprint import weights_hash
from mmaselect.extract.fold import dit_of, is_folded
from mmaselect.extract.lora import add_lora

DECODER = ('encoder.vae.decoder.', 'encoder.vae.post_quant_conv.')  # in older checkpoints only


@dataclass(frozen=True)
class Reference:
    """Where frozen weights are to be had, and hashes by which they are known again.

    Args:
        source (str): Folder or hub id.
        dit (str): Hash of the transformer.
        vae (str | None): Hash of the VAE's encoder; None of a DiT on pixels.
        revision (str | None): Of the hub id.
    """
    source: str
    dit: str
    vae: str | None
    revision: str | None = None

    @classmethod
    def of(cls, source: str, extractor: Extractor, revision: str | None = None) -> 'Reference':
        return cls(str(source), weights_hash(extractor), extractor.encoder.fingerprint(), revision)

    def put(self, state: dict[str, Tensor], prefix: str):
        """Writes it into a state dict, which holds nothing but tensors: the bytes of its JSON."""
        state[f'{prefix}reference'] = torch.frombuffer(bytearray(json.dumps(asdict(self)).encode()), dtype=torch.uint8)

    def check(self, own: 'Reference | None'):
        """Raises ValueError where a model's frozen weights, ``own``, are not those that a checkpoint refers to."""
        name = f'{self.source}{f" (revision {self.revision})" if self.revision else ""}'
        if own is None:
            raise ValueError(f'the checkpoint refers to the frozen weights of {name} and holds none, and this backbone has '
                             'others: set backbone.pretrained to it, or write a self-contained checkpoint with '
                             'tools/publish_model.py')
        for part, what in (('dit', 'transformer'), ('vae', 'VAE')):
            if getattr(self, part) != getattr(own, part):
                raise ValueError(
                    f'the checkpoint was trained on the frozen {what} of {name}, and that of pretrained={own.source!r} has other '
                    f'weights now or another dtype (hash {getattr(own, part)}, not {getattr(self, part)}): give the weights that '
                    'it was trained on, or train anew')


def check_options(frozen: bool, lora: dict | None, recall: float | None, noise: str, noise_draws: int):
    """Raises ValueError for options of a DiTBackbone that are unknown or exclude each other."""
    check_noise(noise, noise_draws)
    if lora is not None and not frozen:
        raise ValueError('lora trains adapters and frozen=False all weights of the DiT: leave out one of the two')
    if recall and (lora is not None or not frozen or noise == 'random'):
        raise ValueError("recall is for features that are the same in every epoch, those of frozen=True without lora and noise="
                         "'seeded' or 'none'")


def freeze(extractor: Extractor, frozen: bool, lora: dict | None) -> set[str]:
    """Leaves gradients to what is trained alone, and gives the names of these parameters: adapters, or none, or the DiT's."""
    if lora is not None:
        trained = add_lora(extractor, **lora)
    elif frozen:
        trained = []
    else:
        trained = extractor.used_parameters() if extractor.timesteps is None else list(extractor.family.parameters())
    extractor.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return {name for name, parameter in extractor.named_parameters() if parameter.requires_grad}


def leave_out_frozen(backbone: Any, state: dict[str, Tensor], prefix: str, _):
    """A state dict hook: leaves out what ``pretrained`` has, and what stands in the ViT's place before the choice."""
    if backbone.origin.refers or backbone.is_open:
        own = f'{prefix}extractor.'
        for key in [key for key in state if key.startswith(own) and key[len(own):] not in backbone.trained]:
            del state[key]
    if backbone.origin.refers:
        backbone.reference().put(state, prefix)


def take_reference(backbone: Any, state: dict[str, Tensor], prefix: str) -> Reference | None:
    """Takes the reference, where there is one, out of a checkpoint that is about to be loaded.

    Raises:
        ValueError: The checkpoint has another number of timesteps. Of these torch would take the first, or warn.
    """
    given = state.get(f'{prefix}timestep', backbone.timestep)
    if given.shape != backbone.timestep.shape:
        raise ValueError(f'the checkpoint has {given.numel()} timesteps ({prefix}timestep is {given.tolist()}) and this '
                         f'backbone is set up for {backbone.num_timesteps}: set num_timesteps of the backbone and of the '
                         f"neck's selection to {given.numel()}, or delete that key from the checkpoint to choose anew")
    stored = state.pop(f'{prefix}reference', None)
    return None if stored is None else Reference(**json.loads(bytes(stored.tolist())))


def load_weights(backbone: Any, state: dict[str, Tensor], prefix: str, reference: Reference | None):
    """Prepares the loading of the extractor's weights from a checkpoint, and chooses its timesteps, or those that are fixed.

    Args:
        backbone (DiTBackbone): Its buffers are loaded already. Its ViT gets ready to be loaded.
        state (dict[str, Tensor]): The checkpoint. Afterwards it has all that the extractor has, and no more.
        prefix (str): Of the backbone's keys.
        reference (Reference | None): In the checkpoint.

    Raises:
        ValueError: The checkpoint's DiT is folded and cannot be run as wanted, or refers to other frozen weights; or its tap was
            chosen, and this DiT is trained.
        RuntimeError: Its DiT is whole, and of another size.
    """
    block, name = backbone.tap.tolist()
    taps = backbone.taps if block < 0 else ((block, list(TAPS)[name]),)
    if not backbone.frozen and taps != backbone.taps:
        raise ValueError(f'the checkpoint was made with the tap {taps[0]}, which was chosen, and a DiT that is trained needs '
                         f'its taps in the config: set backbone.taps={list(taps)}')
    stored = tuple(t for t in backbone.timestep.reshape(-1).tolist() if t >= 0)
    wanted = backbone.fixed or stored
    if stored not in ((), wanted):
        warnings.warn(f'the checkpoint was made at timestep {listed(stored)} and the config fixes '
                      f'timestep={listed(wanted)}, which is used', stacklevel=3)
    prefix = f'{prefix}extractor.'
    for key in [key for key in state if key.startswith(tuple(prefix + part for part in DECODER))]:
        del state[key]
    extractor = backbone.extractor
    given = {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
    dit = {name.removeprefix('family.'): value for name, value in given.items() if name.startswith('family.')}
    folded = is_folded(dit)
    if folded and (not backbone.folds or stored != wanted):
        raise ValueError(f'the checkpoint has a DiT that is folded at timestep {listed(stored)}, which cannot be undone: it '
                         'runs at that timestep alone, with backbone.fold=True: leave backbone.timestep open')
    if reference is not None and extractor.state_dict().keys() - given.keys():
        reference.check(backbone.reference())
    if given.keys() - backbone.trained:
        backbone.origin.refers = False
    if not backbone.folds:
        backbone.note(wanted)
    elif folded and stored:
        _check_shapes(extractor.family.state_dict(), dit)
        extractor.family.timesteps = stored
        backbone.select(stored)
    else:
        if dit and not folded:
            whole = dit_of(extractor.family.config, dit)
            whole.pos_scale = extractor.family.pos_scale
            backbone.origin.hold(whole)
            extractor.family.timesteps = ()
        for name in dit:  # what is folded at no timestep, of a checkpoint from before the choice
            del state[f'{prefix}family.{name}']
        backbone.select(wanted) if wanted else backbone.note(())
    ours = extractor.state_dict()
    for name, value in ours.items():
        state.setdefault(prefix + name, value)
    if folded:  # up to a later block than is needed here
        for name in given.keys() - ours.keys():
            del state[prefix + name]
    extractor.set_taps(taps)


def _check_shapes(wanted, found):
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            shape = tuple(found[name].shape) if name in found else 'absent'
            raise ValueError(f'the DiT of the checkpoint was folded for other taps than those of the config, or is of another '
                             f'size: {name} should be {tuple(value.shape)} and is {shape}')


def listed(timesteps: tuple[int, ...]) -> str:
    """Timesteps for a message."""
    return ', '.join(map(str, timesteps)) or 'unknown'
