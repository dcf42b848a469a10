"""Makes one page of HTML of a run: choice of the timestep, curves, metrics, pictures, config and how to make it again.

    python tools/visualization/report.py work_dirs/dit_aselect_fashion_scenes

The page needs no other file and no network. What a run lacks, as one that was interrupted, is left out or said in words.
"""
import argparse
from pathlib import Path

from mmaselect import report
from mmaselect.files import atomic


def draw_features(run, count):
    """Has the vis tools' pictures made in the work dir, from the run's config and last checkpoint."""
    from mmaselect.openmm import vis
    if run.config_file is None:
        raise ValueError(f'{run.folder} holds no config, which --draw-features needs')
    checkpoint = [str(run.checkpoint)] if run.checkpoint else []
    options = [str(run.config_file), *checkpoint, '--images', str(count), '--work-dir', str(run.folder)]
    inputs = vis.load_inputs(vis.parser('', out='vis_features.png').parse_args(options))
    vis.draw_features(inputs, tap='hidden')
    inputs = vis.load_inputs(vis.parser('', out='vis_timesteps.png').parse_args([*options, '--images', '1']))
    vis.draw_timesteps(inputs, tap='hidden', selection=run.selection)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('work_dir', help='of a run')
    parser.add_argument('--out', metavar='FILE', help='page to write (default: report.html in the work dir)')
    parser.add_argument('--pictures', type=int, default=12, metavar='N', help='at most so many predictions (default: 12)')
    parser.add_argument('--draw-features', type=int, default=0, metavar='N',
                        help='draw the features of N training images first, as vis_features.py and vis_timesteps.py do')
    args = parser.parse_args()
    try:
        run = report.read(args.work_dir)
        if args.draw_features:
            draw_features(run, args.draw_features)
            run = report.read(args.work_dir)
        out = Path(args.out or Path(args.work_dir, 'report.html'))
        with atomic(out) as part:
            part.write_text(report.render(run, pictures=args.pictures), encoding='utf-8')
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:  # a checkpoint that is broken among them
        parser.error(str(error))
    print(f'written: {out}')


if __name__ == '__main__':
    main()
