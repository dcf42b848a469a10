"""Finding ours in a model of OpenMMLab's, whatever is wrapped around it."""
import contextlib
from typing import TypeVar

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

M = TypeVar('M', bound=nn.Module)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP and inside test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def find_module(model: nn.Module, kind: type[M]) -> M | None:
    """The first module of a class in the model, or None."""
    return next((module for module in model.modules() if isinstance(module, kind)), None)


def gathered(model: nn.Module) -> contextlib.AbstractContextManager:
    """A context in which parts of ``model`` can be used on their own: under FSDP its weights are gathered."""
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model, writeback=False)
    return contextlib.nullcontext()
