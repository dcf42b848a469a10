"""The options of the tools that write caches, and the Runner that they name."""
import argparse
from pathlib import Path

from mmengine.runner import Runner

from .. import launch
from ..checkpoints import check_writable
from .source import SPLITS


def parser(description: str, kind: str) -> argparse.ArgumentParser:
    """The options that the tools have in common, for a cache of ``kind``."""
    options = launch.parser(description)
    options.add_argument('--out', help=f'folder of the cache (default: work_dirs/{kind}/<config>)')
    options.add_argument('--split', nargs='+', choices=SPLITS, default=SPLITS[:2], help='which datasets (default: train val)')
    options.add_argument('--batch-size', type=int, default=32, help='images per forward pass (default: 32)')
    options.set_defaults(kind=kind)
    return options


def runner_of(args: argparse.Namespace) -> Runner:
    """The runner of a tool's options, with the checkpoint loaded; ``args.out`` is set.

    Raises:
        OSError: A folder cannot be written.
        ValueError: The options or the config are not right.
        CheckpointError: The checkpoint cannot be used.
    """
    if args.launcher != 'none':
        raise ValueError('caches are written by one process: leave --launcher out, and give the splits to several calls')
    cfg = launch.load_config(args)
    cfg.load_from, cfg.resume = args.checkpoint, False
    args.out = args.out or f'work_dirs/{args.kind}/{Path(args.config).stem}'
    check_writable(args.out, 'the folder of the cache', '--out')
    launch.prepare(cfg)
    runner = launch.build_runner(cfg)
    runner.load_or_resume()
    return runner
