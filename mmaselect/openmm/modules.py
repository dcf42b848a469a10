"""Finding ours in a model of OpenMMLab's."""
from typing import TypeVar

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

M = TypeVar('M', bound=nn.Module)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP and inside test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def find_module(model: nn.Module, kind: type[M]) -> M | None:
    """The first module of a class in the model, or None."""
    return next((module for module in model.modules() if isinstance(module, kind)), None)
