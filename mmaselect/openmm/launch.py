"""What tools/train.py and tools/test.py share: from a config file and options to a Runner.

A config belongs to the toolbox that its default_scope names, 'mmseg' or 'mmpretrain'. Importing this module imports
mmaselect.openmm, which registers the classes; ``load_config`` makes checkpoint loading safe.
"""
import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from . import console
from .checkpoints import check_checkpoint, check_writable
from .configs import add_forgotten_hook, fill_dataloaders, leave_out_levels, merge_data_preprocessor
from .processes import join_cpu_processes
from .safe_load import enable_safe_loading

TOOLBOXES = ('mmseg', 'mmpretrain')


def parser(description: str) -> argparse.ArgumentParser:
    """The options that training and testing have in common."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument('config', help="config file; its default_scope, 'mmseg' or 'mmpretrain', names the toolbox")
    options.add_argument('--work-dir', help="folder for logs and checkpoints (default: the config's, or work_dirs/<config>)")
    options.add_argument('--amp', action='store_true', help='automatic mixed precision')
    options.add_argument('--no-pin-memory', action='store_true', help='switch pin_memory off in the dataloaders')
    options.add_argument('--no-persistent-workers', action='store_true', help='switch persistent_workers off')
    options.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                         help='replace settings of the config: model.backbone.timestep=100, key="[a,b]" or key=a,b')
    options.add_argument('--launcher', choices=['none', *console.LAUNCHERS], default='none', help='who started the processes')
    options.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')
    return options


def load_config(args: argparse.Namespace) -> Config:
    """The config with the common options put in.

    Raises:
        FileNotFoundError: There is no such config.
        ValueError: It names no toolbox.
    """
    enable_safe_loading()  # of this tool's process; a program that imports mmaselect loads as it did
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # where MMEngine looks for it
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(args.config).stem}'
    if cfg.get('default_scope') not in TOOLBOXES:
        raise ValueError(f"{args.config} has default_scope={cfg.get('default_scope')!r}: set it to one of {TOOLBOXES}, the "
                         'toolbox that the config is for')
    merge_data_preprocessor(cfg)
    fill_dataloaders(cfg, pin_memory=not args.no_pin_memory, persistent_workers=not args.no_persistent_workers)
    return cfg


def prepare(cfg: Config):
    """All that has to be right before a Runner is built.

    Raises:
        OSError: The work dir cannot be written.
        CheckpointError: The checkpoint of ``load_from`` cannot be used.
        ValueError: As ``leave_out_levels`` and ``join_cpu_processes``.
    """
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
    check_writable(cfg.work_dir)
    add_forgotten_hook(cfg)
    leave_out_levels(cfg)
    join_cpu_processes(cfg)


def build_runner(cfg: Config) -> Runner:
    """The config's own kind of runner, or MMEngine's."""
    console.import_quietly(f'{cfg.default_scope}.datasets')
    with console.short():
        if 'runner_type' not in cfg:
            return Runner.from_cfg(cfg)
        init_default_scope(cfg.default_scope)  # else a runner of the toolbox's own is not found
        return RUNNERS.build(cfg)
