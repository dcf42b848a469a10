"""A hash by which a result can be told to be of a model."""
import hashlib

import torch
from torch import nn


def weights_hash(extractor: nn.Module) -> str:
    """Hash of the weights of an extractor's transformer, without the VAE's."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(extractor.state_dict().items()):
        if not name.startswith('encoder.'):
            digest.update(name.encode())
            # Cloned, since numpy locks a storage, and FSDP could then not free the weights that it gathered.
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).clone().numpy().tobytes())
    return digest.hexdigest()
