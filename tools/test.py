"""Evaluates a checkpoint. Stands for the test.py of both MMSegmentation and MMPretrain.

    python tools/test.py configs/dit_aselect_fashion_scenes.py work_dirs/dit_aselect_fashion_scenes/iter_2000.pth
"""
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.dist import is_main_process

from mmaselect.openmm import launch
from mmaselect.openmm.checkpoints import check_writable
from mmaselect.openmm.processes import end
from mmaselect.openmm.safe_load import CheckpointError


def parse_args():
    parser = launch.parser(__doc__.split('\n')[0])
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='mmseg: folder for the predicted masks; mmpretrain: file for what --out-item says')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], help='mmpretrain: what --out holds (default: pred)')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show holds each picture')
    parser.add_argument('--interval', type=int, help='mmpretrain: draw every so many images (default: 1)')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation, the config's or mmpretrain's flip")
    return parser, parser.parse_args()


def check_options(cfg, args):
    """Raises ValueError for an option that the config's toolbox gives no meaning."""
    if cfg.default_scope == 'mmseg':
        for name, why in (('out_item', '--out is a folder of masks'), ('interval', 'every test image is drawn')):
            if getattr(args, name) is not None:
                raise ValueError(f'--{name.replace("_", "-")} is for mmpretrain configs; with mmseg {why}')
        return
    if args.tta and (args.show or args.show_dir):
        raise ValueError("mmpretrain's VisualizationHook cannot draw the augmented images of --tta: leave out one of the two")
    if args.out_item and not args.out:
        raise ValueError('--out-item needs --out, the file to write')
    if args.out:
        suffixes = ('.json', '.yaml', '.yml', '.pkl', '.pickle') if args.out_item == 'metrics' else ('.pkl', '.pickle')
        if not args.out.endswith(suffixes):
            raise ValueError(f'--out {args.out}: {args.out_item or "pred"} is written to a file that ends in '
                             f'{" or ".join(suffixes)}')


def save_predictions(cfg, out):
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    if cfg.default_scope == 'mmseg':
        check_writable(out, 'the folder', '--out')
        for evaluator in evaluators:
            evaluator.update(output_dir=out, keep_results=True)
    else:
        check_writable(Path(out).parent, 'the folder', '--out')
        cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=out)]


def draw_predictions(cfg, args):
    hook = cfg.get('default_hooks', {}).get('visualization')
    if not hook:
        raise ValueError('--show and --show-dir need default_hooks.visualization in the config: a SegVisualizationHook for '
                         'mmseg, a VisualizationHook for mmpretrain')
    hook.update(show=args.show, wait_time=args.wait_time, interval=args.interval or 1)
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, out_dir=args.show_dir)
    else:
        hook.draw = True
        if args.show_dir:
            cfg.visualizer.save_dir = args.show_dir


def augment(cfg):
    """Wraps the model and the test pipeline for test-time augmentation."""
    pipeline = cfg.test_dataloader.dataset.pipeline
    if cfg.default_scope == 'mmpretrain':
        flips = [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)]
        cfg.setdefault('tta_model', dict(type='mmpretrain.AverageClsScoreTTA'))
        cfg.setdefault('tta_pipeline', [*deepcopy(pipeline[:-1]),
                                        dict(type='TestTimeAug', transforms=[flips, [deepcopy(pipeline[-1])]])])
    missing = [name for name in ('tta_model', 'tta_pipeline') if not cfg.get(name)]
    if missing:
        raise ValueError(f'--tta needs {" and ".join(missing)} in the config')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def main():
    parser, args = parse_args()
    try:
        cfg = launch.load_config(args)
        check_options(cfg, args)
        cfg.load_from, cfg.resume = args.checkpoint, False
        if args.amp:
            cfg.test_cfg.fp16 = True
        if args.out and args.out_item != 'metrics':
            save_predictions(cfg, args.out)
        if args.show or args.show_dir:
            draw_predictions(cfg, args)
        launch.prepare(cfg)
        if args.tta:
            augment(cfg)  # of the model as ``prepare`` leaves it
    except (OSError, ValueError, CheckpointError) as error:
        parser.error(str(error))
    metrics = launch.build_runner(cfg).test()
    if args.out_item == 'metrics' and is_main_process():
        mmengine.dump(metrics, args.out)
    end()


if __name__ == '__main__':
    main()
