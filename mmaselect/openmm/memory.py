"""The memory that one training step of a config takes, found without weights, data or a GPU.

No formulae: the real model takes a real step, on fake tensors, which have a shape and a type but no content. What autograd
keeps for the backward pass, what checkpointing spares and what the optimizer remembers is then what they do, not what we
believe that they do. ``StorageCounter`` watches every operator and adds up the storages that exist at each moment. PyTorch's
MemTracker (2.14) comes to the same where it runs, but raises where some parameters are frozen.
"""
import contextlib
import copy
import weakref
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmaselect.extract.latent import LatentEncoder
from mmaselect.extract.loading import arch_of

from .configs import image_size, merge_data_preprocessor, type_name
from .published import PUBLISHED

FILES = ('variant', 'revision', 'dtype')  # options of DiTBackbone that are about the files of ``pretrained``


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step on one device.

    ``activations`` is the images and what the forward pass leaves for the backward pass. ``peak`` is the most that exists at
    once, which is less than the sum where gradients appear while activations go, and more where results pass by.
    """
    parameters: int  # and buffers, of the frozen parts as well
    gradients: int
    optimizer: int
    activations: int
    peak: int


class StorageCounter(TorchDispatchMode):
    """Adds up the storages that exist: ``now``, and the most at once, ``peak``, in bytes. Tensors made before do not count."""

    def __init__(self, *before):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in before}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0  # a value is asked for, as by a check of the images' range, and there is none
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size


@contextlib.contextmanager
def gpu_autocast():
    """Autocast's float32 operators on GPUs, which on CPUs run in bfloat16 (the list: PyTorch's page on torch.amp).

    Patched, and not a TorchFunctionMode, which is off while the backward pass computes checkpoints anew.
    """
    def in_float32(function):
        return lambda x, *args, **kwargs: function(x.float() if x.is_floating_point() else x, *args, **kwargs)
    names = ('layer_norm', 'group_norm', 'softmax', 'log_softmax', 'cross_entropy', 'nll_loss')
    with mock.patch.multiple(F, **{name: in_float32(getattr(F, name)) for name in names}):
        yield


@contextlib.contextmanager
def fake_parameters(mode):
    """Modules that are built in this context have parameters without content."""
    register = nn.Module.register_parameter

    def register_fake(module, name, parameter):
        if parameter is not None and not isinstance(parameter, FakeTensor):
            parameter = nn.Parameter(mode.from_tensor(parameter.data), parameter.requires_grad)
        register(module, name, parameter)

    def convert(module, function, recurse=True):
        """In place of ``Module._apply``, the base of ``to``, which swaps contents that these do not have."""
        for part in module.modules() if recurse else [module]:
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                part._buffers[name] = buffer if buffer is None else function(buffer)
        return module
    with mock.patch.multiple(nn.Module, register_parameter=register_fake, _apply=convert):
        yield


def without_weights(backbone):
    """A backbone's config with ``arch`` in place of ``pretrained``.

    Raises:
        ValueError: The checkpoint is neither a folder nor one whose sizes are known here.
    """
    source = backbone.get('pretrained')
    if source is None:
        return backbone
    if source not in PUBLISHED and not Path(source).expanduser().is_dir():
        raise ValueError(f'the sizes of {source!r} are not known: give its folder, with --cfg-options '
                         f'model.backbone.pretrained=FOLDER, or one of {", ".join(PUBLISHED)}')
    arch = PUBLISHED[source] if source in PUBLISHED else arch_of(source)
    return dict({key: value for key, value in backbone.items() if key not in FILES}, pretrained=None, arch=arch)


def share_all(model):
    """In place of ``share_embedders``, which compares values that fake tensors lack: those of published DiTs are all equal."""
    first, *others = (block.norm1 for block in model.transformer_blocks)
    for other in others:
        other.emb = first.emb


def sample(scope, height, width):
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample
        size = dict(img_shape=(height, width), ori_shape=(height, width))
        return SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, height, width, dtype=torch.long)), metainfo=size)
    from mmpretrain.structures import DataSample
    return DataSample().set_gt_label(0)


def loss_of(model, images, samples, scope):
    """The loss as in training. mmseg's accuracy picks pixels by their values, which fake tensors lack; it keeps no memory."""
    blind = (mock.patch('mmseg.models.decode_heads.decode_head.accuracy', lambda *_, **__: torch.zeros(1)) if scope == 'mmseg'
             else contextlib.nullcontext())
    with blind, mock.patch.object(LatentEncoder, '_check_values', lambda *_: None):  # nor are there any to be checked
        return model.parse_losses(model(images, samples, mode='loss'))[0]


def precision_of(cfg):
    """The dtype that the config computes in, as a string, or None for float32."""
    if type_name(cfg.optim_wrapper) != 'AmpOptimWrapper':
        return None
    return cfg.optim_wrapper.get('dtype') or 'float16'


def nbytes(tensors):
    """Bytes of tensors, what they share counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def predict(cfg, *, batch_size=None, size=None, device='gpu'):
    """The memory of a config's training step on one device, without parallelism.

    Not in it: the GPU's own context, work space inside of operators, gaps of the allocator, DDP's buckets (a copy of the
    gradients).

    Args:
        cfg (Config): Of either toolbox. Not changed.
        batch_size (int | None): By default the config's.
        size (tuple[int, int] | None): Height and width of the images in pixels, by default the config's crop.
        device (str): 'gpu' or 'cpu': they differ in what autocast leaves in float32.

    Returns:
        Memory

    Raises:
        ValueError: A checkpoint whose sizes are not known, or a config that does not say the size of its images.
        RuntimeError: PyTorch is older than 2.4. With 2.1 the activations come out wrong, by up to 30 times.
    """
    if Version(torch.__version__) < Version('2.4'):
        raise RuntimeError(f'predicting the memory needs PyTorch 2.4 or newer, and this is {torch.__version__}')
    init_default_scope(cfg.default_scope)
    cfg = copy.deepcopy(cfg)
    merge_data_preprocessor(cfg)
    size = size or image_size(cfg, None)
    if size is None:
        raise ValueError('the config does not say how large a training image is: give --size')
    height, width = size
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    backbone = without_weights(cfg.model.backbone)
    backbone = dict(backbone, timestep=backbone.get('timestep') or list(range(backbone.get('num_timesteps') or 1)))
    share = share_all if cfg.model.backbone.get('pretrained') else lambda model: None
    with fake_parameters(mode), mock.patch('mmaselect.extract.families.dit.share_embedders', share):
        model = revert_sync_batchnorm(MODELS.build(dict(cfg.model, backbone=backbone))).train()
        if dtype := cfg.model.backbone.get('dtype'):
            model.backbone.dtype = dtype
            model.backbone.extractor.family.to(getattr(torch, dtype))
    wrapper = {key: cfg.optim_wrapper[key] for key in ('optimizer', 'constructor', 'paramwise_cfg') if key in cfg.optim_wrapper}
    optimizer = build_optim_wrapper(model, dict(wrapper, type='OptimWrapper')).optimizer
    for group in optimizer.param_groups:
        if device == 'gpu' and group.get('foreach', False) is None:
            group['foreach'] = True  # what torch chooses there: faster, with temporary copies
    batch = batch_size or cfg.train_dataloader.batch_size
    images = mode.from_tensor(torch.zeros(batch, 3, height, width))
    samples = [sample(cfg.default_scope, height, width) for _ in range(batch)]
    return measure(model, optimizer, lambda: loss_of(model, images, samples, cfg.default_scope), images,
                   precision=precision_of(cfg), device=device)


def measure(model, optimizer, loss, images, *, precision, device):
    """Takes one step and adds up."""
    own = [*model.parameters(), *model.buffers()]
    live = StorageCounter(*own)
    live._see(images.untyped_storage())
    rules = gpu_autocast() if precision and device == 'gpu' else contextlib.nullcontext()
    with live, rules:
        with torch.autocast('cpu', dtype=getattr(torch, precision or 'bfloat16'), enabled=precision is not None):
            value = loss()
        activations = live.now
        value.backward()
        del value
        gradients = nbytes(p.grad for p in model.parameters() if p.grad is not None)
        step_peak, live.peak = live.peak, live.now
        optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    parameters, remembered = nbytes(own), nbytes(states)
    # From the second step on the optimizer's state is there from the start; live.peak has it already.
    peak = parameters + max(step_peak + remembered, live.peak)
    return Memory(parameters, gradients, remembered, activations, peak)
