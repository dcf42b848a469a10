"""The predicted memory against what real steps of tiny models take."""
import contextlib

import pytest
import runs
import tiny
import torch
from marks import quick
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmaselect.extract import loading
from mmaselect.extract.sizes import sizes
from mmaselect.openmm import memory

BATCH, SIZE = 4, (48, 80)
BF16 = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
CASES = {
    'frozen': ('aselect_ade20k', {}),
    'fine-tuned': ('aselect_ade20k_finetune', {'model.backbone.with_cp': False}),
    'checkpointing': ('aselect_ade20k_finetune', {}),
    'bfloat16': ('aselect_ade20k_finetune', {'model.backbone.with_cp': False, **BF16}),
    'bfloat16, checkpointing': ('aselect_cub_finetune', BF16),
    'lora': ('aselect_cub_lora', {'model.backbone.with_cp': False}),
    'linear probe': ('aselect_imagenet', {}),
}


class Allocations:
    """What PyTorch's allocator says: bytes that a block of code leaves, and the most that it held at once."""

    def __enter__(self):
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self.profile.__enter__()
        return self

    def __exit__(self, *error):
        self.profile.__exit__(*error)
        events = [e for e in self.profile.profiler.kineto_results.events() if e.name() == '[memory]']
        held, most = 0, 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        self.left, self.most = held, most


def real(cfg):
    """(bytes of parameters, gradients, optimizer state, activations, peak), and of what autograd saves, of a real step."""
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(dict(cfg.model, backbone=dict(cfg.model.backbone, timestep=0)))).train()
    wrapper = {key: cfg.optim_wrapper[key] for key in ('optimizer', 'constructor', 'paramwise_cfg') if key in cfg.optim_wrapper}
    optimizer = build_optim_wrapper(model, dict(wrapper, type='OptimWrapper')).optimizer
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    images = torch.rand(BATCH, 3, *SIZE) * 2 - 1
    samples = [memory.sample(cfg.default_scope, *SIZE) for _ in range(BATCH)]
    saved = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def forward():
        dtype = torch.bfloat16 if cfg.optim_wrapper.get('dtype') else None
        with torch.autocast('cpu', dtype=dtype) if dtype else contextlib.nullcontext():
            return model.parse_losses(model(images, samples, mode='loss'))[0]

    with torch.no_grad():
        forward()  # what is made once and kept, such as the positions of a grid, is no part of a step
    with Allocations() as first, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    del loss
    with Allocations() as second:
        forward().backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
    parameters = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    peak = parameters + state + images.nbytes + second.most
    return (parameters, gradients, state, first.left + images.nbytes, peak), sum(saved.values())


@pytest.mark.skipif(tiny.OLD_TORCH, reason='refused')
@pytest.mark.parametrize('case', quick(CASES, ('frozen', 'bfloat16, checkpointing', 'lora')))
def test_a_prediction_is_what_a_real_step_takes(case, data, tmp_path):
    name, changes = CASES[case]
    cfg = runs.config(name, data, tmp_path, changes)
    if not runs.segments(name):
        # On pixels, since a classifier's peak is in the VAE, and convolutions on CPUs take work space of their own.
        cfg.model.backbone.arch = tiny.PIXEL_ARCH
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (parameters, gradients, state, activations, peak), saved = real(cfg)
    found = memory.predict(cfg, batch_size=BATCH, size=SIZE, device='cpu')
    assert (found.parameters, found.gradients, found.optimizer) == (parameters, gradients, state)
    assert found.activations == pytest.approx(activations, rel=0.15)
    assert found.peak == pytest.approx(peak, rel=0.15)
    if 'checkpointing' not in case:  # what a checkpoint keeps is hidden from the hooks
        assert found.activations == pytest.approx(saved + BATCH * 3 * SIZE[0] * SIZE[1] * 4, rel=0.15)


@pytest.mark.skipif(tiny.OLD_TORCH, reason='refused')
def test_what_a_gpu_leaves_in_float32_goes_with_checkpointing(data, tmp_path):
    """Blocks are computed anew in the types in which they were computed."""
    cfg = runs.config('aselect_cub_finetune', data, tmp_path, BF16)
    gpu, cpu = (memory.predict(cfg, batch_size=BATCH, size=SIZE, device=device) for device in ('gpu', 'cpu'))
    assert gpu.parameters == cpu.parameters and gpu.activations >= cpu.activations


def test_an_old_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.1.2')
    with pytest.raises(RuntimeError, match='needs PyTorch 2.4 or newer, and this is 2.1.2'):
        memory.predict(runs.shipped('aselect_cub'))


# Width, blocks, pixels per token, and parameters of the transformer in billions, of each table of docs/families.md.
PUBLISHED = {
    'facebook/DiT-XL-2-256': (1152, 28, 16, 0.7), 'facebook/DiT-XL-2-512': (1152, 28, 16, 0.7),
    'stabilityai/stable-diffusion-3-medium-diffusers': (1536, 24, 16, 2.0), 'black-forest-labs/FLUX.1-dev': (3072, 57, 16, 11.9),
    'black-forest-labs/FLUX.2-dev': (6144, 56, 16, 32.2), 'black-forest-labs/FLUX.2-klein-base-4B': (3072, 25, 16, 3.9),
    'Alpha-VLLM/Lumina-Image-2.0': (2304, 28, 16, 2.6), 'Tongyi-MAI/Z-Image-Turbo': (3840, 32, 16, 6.2),
    'Efficient-Large-Model/Sana_1600M_1024px_diffusers': (2240, 20, 32, 1.6), 'Qwen/Qwen-Image': (3072, 60, 16, 20.4),
    'Photoroom/prx-512-t2i-sft': (1792, 16, 16, 1.2), 'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS': (1152, 28, 16, 0.6),
    'checkpoints/lightningdit_xl_256': (1152, 28, 16, 0.7)}


@pytest.mark.parametrize('name', memory.PUBLISHED)
def test_published_sizes(name):
    arch = memory.PUBLISHED[name]
    options = dict(arch['transformer'])
    try:
        cls = loading.class_of(options.pop('type', 'DiTTransformer2DModel'))
    except ValueError as error:
        pytest.skip(str(error))
    found = sizes(arch)
    with torch.device('meta'):
        billions = sum(parameter.numel() for parameter in cls(**options).parameters()) / 1e9
    assert (found.width, found.depth, found.token_stride, round(billions, 1)) == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.skipif(tiny.OLD_TORCH, reason='refused')
@pytest.mark.parametrize('family', runs.FAMILIES)
def test_the_memory_of_a_published_family(family):
    """Frozen in two bytes a number where the config says so; what is trained is the head's."""
    cfg = runs.shipped(f'aselect_ade20k_{family}')
    found = memory.predict(cfg, batch_size=2)  # of one, pooled maps have a single value a channel
    *_, billions = PUBLISHED[cfg.model.backbone.pretrained]
    least = billions * 1e9 * (2 if cfg.model.backbone.get('dtype') else 4)
    frozen = found.parameters - found.gradients  # the VAE among it
    assert 0.9 * least < frozen < least + 2e9 and found.gradients < 3e9 and found.peak > found.parameters
