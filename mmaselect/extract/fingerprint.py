"""Hashes by which weights are known again."""
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def add_weights(digest: Any, state: Mapping[str, Tensor]) -> None:
    """Updates a digest of hashlib by the names and values of a state dict, whatever their order and device."""
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        # Cloned, since numpy locks a storage, and FSDP could then not free the weights that it gathered.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).clone().numpy().tobytes())


def weights_hash(extractor: nn.Module) -> str:
    """Hash of the weights of an extractor's transformer, without the VAE's."""
    digest = hashlib.blake2b(digest_size=16)
    add_weights(digest, {name: value for name, value in extractor.state_dict().items() if not name.startswith('encoder.')})
    return digest.hexdigest()
