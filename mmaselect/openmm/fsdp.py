"""PyTorch's FSDP around a model with a DiTBackbone; see configs/_base_/fsdp.py for how it is wrapped."""
import contextlib

from torch.distributed.fsdp import FullyShardedDataParallel


def whole(model):
    """A context in which parts of ``model`` can be used on their own: under FSDP, its weights are gathered."""
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model, writeback=False)
    return contextlib.nullcontext()
