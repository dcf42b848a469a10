"""What PyTorch's FSDP has to know of a DiTBackbone."""
import contextlib

from torch.distributed.fsdp import FullyShardedDataParallel

from mmaselect.registry import FUNCTIONS

from .backbone import DiTBackbone


@FUNCTIONS.register_module()
def wrap_backbone(module, recurse, nonwrapped_numel):
    """The auto_wrap_policy that makes the backbone one unit of FSDP, and all else another.

    A unit is gathered when its ``forward`` is called. Of a DiT's blocks, which give out what is inside them, only parts are
    called, and of a decode head only ``loss``: they cannot be units.
    """
    return recurse or isinstance(module, DiTBackbone)


def whole(model):
    """A context in which parts of ``model`` can be used on their own: under FSDP, its weights are gathered."""
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model, writeback=False)
    return contextlib.nullcontext()
