"""Hashes by which weights are known again."""
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def hash_of(state: Mapping[str, Tensor], about: str = '') -> str:
    """Hash of the names and values of a state dict, whatever their order and device, and of a text that comes first."""
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        # Cloned, since numpy locks a storage, and FSDP could then not free the weights that it gathered.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).clone().numpy().tobytes())
    return digest.hexdigest()


def weights_hash(extractor: nn.Module) -> str:
    """Hash of the weights of an extractor's transformer, without the VAE's.

    Of frozen weights it is computed once, which takes seconds for a large DiT, and anew where they moved or were written to.
    """
    state = {name: value for name, value in extractor.state_dict().items() if not name.startswith('encoder.')}
    family = extractor.family
    if any(p.requires_grad or p.is_inference() for p in family.parameters()):
        return hash_of(state)
    where = [(value.data_ptr(), value.dtype, value._version) for value in state.values()]
    known = getattr(family, 'known_hash', None)
    if known is None or known[0] != where:
        family.known_hash = known = where, hash_of(state)
    return known[1]
