"""Draws what a config's DiT sees at each timestep: the image, the noisy latent decoded, its features, and the score.

    python tools/visualization/vis_timesteps.py configs/dit_aselect_fashion_scenes.py --images 1

writes a picture per image, with a row per candidate of the work dir's timestep_selection.json, where there is one.
"""
from pathlib import Path

from mmaselect.openmm import vis
from mmaselect.openmm.safe_load import CheckpointError
from mmaselect.selection import SelectionResult


def main():
    parser = vis.parser(__doc__.split('\n')[0], out='vis_timesteps.png')
    parser.add_argument('--selection', metavar='FILE', help="a sweep's (default: the work dir's timestep_selection.json)")
    args = parser.parse_args()
    try:
        inputs = vis.load_inputs(args)
        file = Path(args.selection or Path(inputs.cfg.work_dir, 'timestep_selection.json'))
        selection = SelectionResult.load(file) if args.selection or file.is_file() else None
        pictures = vis.draw_timesteps(inputs, tap=args.tap, timesteps=args.timesteps, selection=selection)
    except (OSError, ValueError, FloatingPointError, CheckpointError) as error:
        parser.error(str(error))
    print('written:', *pictures, sep='\n')


if __name__ == '__main__':
    main()
