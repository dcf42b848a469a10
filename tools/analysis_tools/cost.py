"""Measures what a trained model costs: parameters, FLOPs, milliseconds per image.

    python tools/analysis_tools/cost.py configs/dit_aselect_fashion_scenes.py work_dirs/dit_aselect_fashion_scenes/iter_1200.pth

The model predicts the first test image, in a batch of its own and as its config tests: sliding windows and the VAE of a latent
DiT are part of it, reading and normalising the image are not.

FLOPs are multiply-adds of convolutions and matrix products, as OpenMMLab's tables have them. They are counted by torch, because
MMEngine's counter takes fused attention for nothing.
"""
import contextlib
import json
import statistics
import time
from pathlib import Path

import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.files import atomic
from mmaselect.openmm import DiTBackbone, launch
from mmaselect.openmm.checkpoints import check_checkpoint
from mmaselect.openmm.configs import leave_out_levels
from mmaselect.openmm.safe_load import CheckpointError

WARM_UP = 5  # forward passes


def parse_args():
    parser = launch.parser(__doc__.split('\n')[0])
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--repeats', type=int, default=30, help='forward passes that are timed (default: 30)')
    parser.add_argument('--out', type=Path, help='JSON file for the figures')
    return parser, parser.parse_args()


def build(cfg, checkpoint):
    """The trained model in evaluation mode, on the device that MMEngine would use."""
    init_default_scope(cfg.default_scope)
    leave_out_levels(cfg)  # as in the training
    model = MODELS.build(cfg.model)
    load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(get_device()).eval()


def first_image(cfg, model):
    """The arguments of ``model.forward`` for the first test image."""
    item = DATASETS.build(cfg.test_dataloader.dataset)[0]
    return model.data_preprocessor(pseudo_collate([item]), False)


@contextlib.contextmanager
def plain_attention():
    """Attention by matrix products, which every torch's counter counts, and not by fused kernels, some of which it misses."""
    switches = [(torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
                (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp)]
    if hasattr(torch.backends, 'mha'):  # else torch has no such switch
        switches.append((torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled))
    before = [get() for get, _ in switches]
    for _, switch in switches:
        switch(False)
    try:
        yield
    finally:
        for (_, switch), value in zip(switches, before, strict=True):
            switch(value)


def count_flops(call):
    """Multiply-adds of a call."""
    with plain_attention(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2  # torch counts multiplications and additions


def time_calls(call, repeats):
    """Median milliseconds of a call."""
    def wait():
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    times = []
    for _ in range(WARM_UP + repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[WARM_UP:])


@torch.no_grad()
def measure(cfg, checkpoint, repeats):
    """All figures as a dict: counts of parameters and multiply-adds, milliseconds, and where and on what they were measured."""
    model = build(cfg, checkpoint)
    batch = first_image(cfg, model)

    def predict():
        model(**batch, mode='predict')

    parameters = list(model.parameters())
    backbone = next((module for module in model.modules() if isinstance(module, DiTBackbone)), None)
    return dict(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        flops=count_flops(predict),
        milliseconds=time_calls(predict, repeats),
        timestep=None if backbone is None else list(backbone.timesteps),
        image=list(batch['inputs'].shape[-2:]),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {torch.get_num_threads()} threads',
        torch=torch.__version__)


def main():
    parser, args = parse_args()
    try:
        cfg = launch.load_config(args)
        check_checkpoint(args.checkpoint)
        if cfg.get('test_dataloader') is None:
            raise ValueError(f'{args.config} has no test_dataloader, from which the image is taken')
        if args.repeats < 1:
            raise ValueError(f'--repeats {args.repeats}: at least one forward pass is timed')
    except (OSError, ValueError, CheckpointError) as error:
        parser.error(str(error))
    found = measure(cfg, args.checkpoint, args.repeats)
    for name, value in found.items():
        print(f'{name:13}{value:,}' if isinstance(value, int) else f'{name:13}{value}')
    if args.out:
        with atomic(args.out) as part:
            part.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
