"""What a choice is held against: a transformer whose weights are random."""
import copy

import torch

from mmaselect.extract import Extractor


def randomised(extractor: Extractor, seed: int) -> Extractor:
    """A copy of the extractor whose transformer has the random weights that its class gives it."""
    model = extractor.family.model
    first = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' too, and nobody would set them back
        fresh = torch.nn.Module.to(type(model).from_config(model.config), first.device, first.dtype)  # diffusers' own warns
    # Everything but the transformer is shared: the VAE is large, and is not changed.
    shared = {id(part): part for part in (extractor.encoder, extractor.process)}
    return copy.deepcopy(extractor, {**shared, id(model): fresh}).eval()
