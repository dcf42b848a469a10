"""Several processes that train together, on machines without an accelerator too."""
import atexit
import os
import subprocess
import sys
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed

from .configs import nodes, type_name
from .console import LAUNCHERS


def join_cpu_processes(cfg: Config):
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


def leave():
    """Ends the processes' connection in order.

    A process that just exits can abort in gloo's threads, after all its work; with torch 2.1 one that does not wait for the
    others can hang, since gloo then waits for a thread that waits for the interpreter.
    """
    if is_distributed():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def end():
    """``leave``, and the end of a process that was one of several, as the last call of a program that succeeded.

    torch's teardown of such a process, whose DDP model still holds the group, aborts now and then, after all its work.
    """
    several = is_distributed()
    leave()
    if several:
        atexit._run_exitfuncs()  # loggers and trackers write what they hold
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
