"""What tools/train.py and tools/test.py share: from a config file and options to a Runner.

A config belongs to the toolbox that its default_scope names, 'mmseg' or 'mmpretrain'. Importing this module imports
mmaselect.openmm, which registers the classes and makes checkpoint loading safe.
"""
import argparse
import os
import re
import subprocess
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from . import console
from .neck import read_levels
from .safe_load import BrokenCheckpointError, load

TOOLBOXES = ('mmseg', 'mmpretrain')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# launcher -> where it tells a process its rank, the number of processes, and both on this machine
LAUNCHERS = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NTASKS_PER_NODE'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_LOCAL_SIZE')}


def log(message):
    """Says it once, however many processes there are; the Runner and so its logger do not exist yet."""
    if all(os.environ.get(names[0], '0') == '0' for names in LAUNCHERS.values()):
        print_log(message, 'current')


def parser(description):
    """The options that training and testing have in common."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument('config', help="config file; its default_scope, 'mmseg' or 'mmpretrain', names the toolbox")
    options.add_argument('--work-dir', help="folder for logs and checkpoints (default: the config's, or work_dirs/<config>)")
    options.add_argument('--amp', action='store_true', help='automatic mixed precision')
    options.add_argument('--no-pin-memory', action='store_true', help='switch pin_memory off in the dataloaders')
    options.add_argument('--no-persistent-workers', action='store_true', help='switch persistent_workers off')
    options.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                         help='replace settings of the config: model.backbone.timestep=100, key="[a,b]" or key=a,b')
    options.add_argument('--launcher', choices=['none', *LAUNCHERS], default='none', help='who started the processes')
    options.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')
    return options


def load_config(args):
    """The config with the common options put in.

    Raises:
        FileNotFoundError: There is no such config.
        ValueError: It names no toolbox.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # where MMEngine looks for it
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(args.config).stem}'
    if cfg.get('default_scope') not in TOOLBOXES:
        raise ValueError(f"{args.config} has default_scope={cfg.get('default_scope')!r}: set it to one of {TOOLBOXES}, the "
                         'toolbox that the config is for')
    fill_dataloaders(cfg, pin_memory=not args.no_pin_memory, persistent_workers=not args.no_persistent_workers)
    return cfg


def fill_dataloaders(cfg, *, pin_memory=True, persistent_workers=True):
    """Puts in what mmpretrain's own tools assume, and takes out what this machine cannot do."""
    for loader in filter(None, map(cfg.get, LOADERS)):
        if cfg.default_scope == 'mmpretrain':
            for key, value in dict(pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate')).items():
                loader.setdefault(key, value)
        if not pin_memory or not torch.cuda.is_available():
            loader.pin_memory = False
        if not persistent_workers or not loader.get('num_workers'):
            loader.persistent_workers = False  # with no workers torch raises


def nodes(tree):
    """Every dict of a config, outermost first."""
    if isinstance(tree, dict):
        yield tree
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    for child in children:
        yield from nodes(child)


def type_name(node):
    """The name of a node's class, without scope or module; '' where it has none."""
    kind = node.get('type') or ''
    return (kind if isinstance(kind, str) else kind.__name__).rpartition('.')[2]


def add_forgotten_hook(cfg):
    """Appends AutoTimestepHook where the model has an AutoTimestepNeck, at any depth, and the config forgot the hook.

    Not where another backbone is compared under the same neck: there is no timestep to choose.
    """
    hooks = cfg.get('custom_hooks') or []
    if ({'DiTBackbone', 'AutoTimestepNeck'} <= {type_name(node) for node in nodes(cfg.get('model'))}
            and not any(type_name(hook).endswith('AutoTimestepHook') for hook in hooks)):
        cfg.custom_hooks = [*hooks, dict(type='mmaselect.AutoTimestepHook')]
        log('the model has an AutoTimestepNeck: custom_hooks gets the mmaselect.AutoTimestepHook that the config lacks')


def leave_out_levels(cfg):
    """Has the neck build the levels that heads read and no others, where the config does not say which.

    Raises:
        ValueError: A head reads a level that the neck does not build.
    """
    read = read_levels(cfg.get('model') or {})
    if read is not None:
        cfg.model.neck.setdefault('levels', read)


def check_writable(folder, name='the work dir', option='--work-dir'):
    """Raises OSError, naming cause and remedy, where a run could not write; makes the folder otherwise."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'0')
    except OSError as error:
        raise OSError(f'{name} {folder} cannot be written ({error.strerror}): choose another with {option} or free this '
                      'one') from error


def check_checkpoint(path):
    """Raises the error of ``safe_load.load``, before anything is built, for a file that will not load; URLs pass."""
    if '://' not in path:
        load(path, 'cpu', mmap=True)


def latest_checkpoint(work_dir):
    """The newest whole training checkpoint of a run that may have been killed at any moment, even while saving.

    The one that last_checkpoint names comes first, unless another is later by number and by time (the run was killed before
    it could name it); then the others, newest first. Time alone would mislead: copying a folder changes it.

    Returns:
        str | None: Its path, or None where no checkpoint is whole.

    Raises:
        RefusedCheckpointError: A checkpoint holds code. It is not skipped, since that could silently lose a long training.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    named = Path(pointer.read_text(errors='replace').replace('\0', '').strip() if pointer.is_file() else '')
    times = {}
    # A CheckpointHook with an out_dir saves elsewhere. The work dir comes first, since it may have been moved since.
    for folder in (Path(work_dir), named.parent) if named.parent.name else (Path(work_dir),):
        for path in () if times else folder.glob('*.pth'):
            number = re.search(r'_(\d+)\.pth$', path.name)
            if number and not path.name.startswith('best_'):  # a best checkpoint has no optimizer state
                times[path] = int(number[1]), path.stat().st_mtime_ns
    named = next((path for path in times if path.name == named.name), None)

    def rank(path):
        later = named is not None and all(mine > its for mine, its in zip(times[path], times[named], strict=True))
        return later, path == named, times[path][1], times[path][0]

    for path in sorted(times, key=rank, reverse=True):
        try:
            found = load(path, 'cpu', mmap=True)
            if isinstance(found, dict) and {'meta', 'state_dict', 'message_hub'} <= found.keys():
                return str(path)
            log(f'skipped {path}: it does not hold the state of a training')
        except BrokenCheckpointError as error:
            log(f'skipped a checkpoint: {error}')
    log(f'no whole checkpoint to resume in {work_dir}: starting from scratch')
    return None


def join_cpu_processes(cfg):
    """Lets several processes train together on a machine without an accelerator, which MMEngine's init_dist cannot.

    Raises:
        ValueError: The processes were not started by the launcher that the options name.
    """
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return
    names = LAUNCHERS[cfg.launcher]
    missing = [name for name in names[:3] if name not in os.environ]
    if missing:
        raise ValueError(f'--launcher {cfg.launcher} needs {", ".join(missing)} in the environment: start through '
                         'tools/dist_*.sh or tools/slurm_*.sh, or leave --launcher out')
    os.environ.update({ours: os.environ[its] for ours, its in zip(LAUNCHERS['pytorch'][:3], names, strict=False)})
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.check_output(['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], text=True)
        os.environ['MASTER_ADDR'] = hosts.split()[0]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'OMP_NUM_THREADS' not in os.environ:
        share = (os.cpu_count() or 1) // int(os.environ.get(names[3], os.environ['WORLD_SIZE']))
        if cfg.launcher == 'slurm':
            share = int(os.environ.get('SLURM_CPUS_PER_TASK', share))
        torch.set_num_threads(max(1, share))
        os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = str(max(1, share))
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)  # seconds
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout))
    unused = cfg.get('find_unused_parameters', False)
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)  # DDP on CPUs takes no device; MMEngine would give LOCAL_RANK
    if cfg.get('strategy') and type_name(cfg.strategy) == 'FSDPStrategy':
        cfg.strategy.setdefault('model_wrapper', {})['device_id'] = 'cpu'  # as above
    cfg.sync_bn = None  # MMEngine's way to turn every BN into SyncBN
    for node in nodes(cfg.get('model')):
        if type_name(node) in ('SyncBN', 'MMSyncBN', 'SyncBatchNorm'):
            node['type'] = 'BN'  # SyncBatchNorm exists on GPUs only


def prepare(cfg):
    """All that has to be right before a Runner is built.

    Raises:
        OSError: The work dir cannot be written.
        ValueError: As ``leave_out_levels`` and ``join_cpu_processes``.
    """
    check_writable(cfg.work_dir)
    add_forgotten_hook(cfg)
    leave_out_levels(cfg)
    join_cpu_processes(cfg)


def build_runner(cfg):
    """The config's own kind of runner, or MMEngine's."""
    console.import_quietly(f'{cfg.default_scope}.datasets')
    with console.short():
        if 'runner_type' not in cfg:
            return Runner.from_cfg(cfg)
        init_default_scope(cfg.default_scope)  # else a runner of the toolbox's own is not found
        return RUNNERS.build(cfg)


def leave():
    """Ends the processes' connection in order.

    A process that just exits can abort in gloo's threads, after all its work; with torch 2.1 one that does not wait for the
    others can hang, since gloo then waits for a thread that waits for the interpreter.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
