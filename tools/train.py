"""Trains a segmentor or a classifier. Stands for the train.py of both MMSegmentation and MMPretrain.

    python tools/train.py configs/dit_aselect_fashion_scenes.py
"""
from pathlib import Path

from mmengine.device import get_device

from mmaselect.openmm import DiTBackbone, launch
from mmaselect.openmm.checkpoints import FULL, latest_checkpoint, naming_full_disk
from mmaselect.openmm.configs import type_name
from mmaselect.openmm.console import log
from mmaselect.openmm.processes import end
from mmaselect.openmm.safe_load import CheckpointError
from mmaselect.openmm.sweep_images import naming_empty_set


def parse_args():
    parser = launch.parser(__doc__.split('\n')[0])
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='go on from this checkpoint or, without one, from the newest whole one of the work dir')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate while training')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help="scale the learning rate by the real batch size against the config's base_batch_size")
    return parser, parser.parse_args()


def use_amp(cfg):
    if get_device() in ('cpu', 'mps'):
        raise ValueError(f'--amp needs an accelerator such as CUDA, and this machine computes on {get_device()}: leave it out')
    kind = cfg.optim_wrapper.setdefault('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'--amp replaces an OptimWrapper, and the config has {kind}: set optim_wrapper there')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_lr(cfg):
    if not cfg.get('auto_scale_lr'):
        raise ValueError('--auto-scale-lr needs the batch size that the learning rate is meant for: put '
                         'auto_scale_lr=dict(base_batch_size=16) into the config')
    cfg.auto_scale_lr.enable = True


def survive_kills(cfg):
    """CheckpointHook removes the oldest checkpoint before it writes the newest, so with one kept there can be none."""
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    if hook.get('max_keep_ckpts') == 1:
        hook.max_keep_ckpts = 2
        log('max_keep_ckpts is 2 in place of 1: a run that is killed while saving can still be resumed')


def start_from(cfg, resume):
    """Sets load_from and resume from the option, else from the config."""
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    found = latest_checkpoint(cfg.work_dir) if resume == 'auto' else resume
    cfg.resume = found is not None
    cfg.load_from = found or cfg.get('load_from')
    if cfg.load_from:
        log(f'{"resuming" if cfg.resume else "loading weights"} from {cfg.load_from}')


def closing_lines(runner):
    """What a reader wants to know at the end: the timestep, the last evaluation, and where everything is."""
    lines = [f'chosen timestep: {", ".join(map(str, module.timesteps))}' for module in runner.model.modules()
             if isinstance(module, DiTBackbone)]
    scalars = runner.message_hub.log_scalars.items()
    metrics = [f'{name[4:]} {buffer.current():.2f}' for name, buffer in scalars
               if name.startswith('val/') and not name.endswith('time')]
    if metrics:
        lines.append(f'last evaluation: {", ".join(metrics)}')
    pictures = Path(runner.log_dir, 'vis_data', 'vis_image')
    if pictures.is_dir():
        lines.append(f'pictures: {pictures}')
    return [*lines, f'checkpoints: {runner.work_dir}']


def main():
    parser, args = parse_args()
    try:
        cfg = launch.load_config(args)
        if args.no_validate:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        if args.amp:
            use_amp(cfg)
        if args.auto_scale_lr:
            scale_lr(cfg)
        survive_kills(cfg)
        start_from(cfg, args.resume)
        launch.prepare(cfg)
    except (OSError, ValueError, CheckpointError) as error:
        parser.error(str(error))
    for hook in cfg.get('custom_hooks') or () if args.resume else ():
        if type_name(hook) == 'AutoTimestepHook':
            hook.resume = True  # the run may have been killed between its sweep and its first checkpoint
    runner = launch.build_runner(cfg)
    with naming_empty_set(cfg.train_dataloader.dataset, 'training'):
        runner.train_loop  # noqa: B018, builds it and so the training set
    if cfg.get('val_dataloader'):
        with naming_empty_set(cfg.val_dataloader.dataset, 'validation'):
            runner.val_loop  # noqa: B018
    try:
        with naming_full_disk(cfg):
            runner.train()
    except OSError as error:
        if error.errno not in FULL:
            raise
        parser.exit(1, f'{error.strerror}\n')
    runner.logger.info('\n'.join(['done', *closing_lines(runner)]))
    end()


if __name__ == '__main__':
    main()
