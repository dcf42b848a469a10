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
    """Hash of the weights of an extractor's transformer, without the VAE's."""
    return hash_of({name: value for name, value in extractor.state_dict().items() if not name.startswith('encoder.')})
