"""Draws the features of a config's DiT over timesteps and blocks: their first three principal components as colours.

    python tools/visualization/vis_features.py configs/dit_aselect_fashion_scenes.py --images 4
    python tools/visualization/vis_features.py CONFIG CHECKPOINT --image photo.jpg --timesteps 0 50 200 --blocks 2 5 -1 --tap key

writes a picture per image. Within a column of a row, a colour means the same in all pictures; between them it does not.
"""
from mmaselect.openmm import vis
from mmaselect.openmm.safe_load import CheckpointError


def main():
    parser = vis.parser(__doc__.split('\n')[0], out='vis_features.png')
    args = parser.parse_args()
    try:
        pictures = vis.draw_features(vis.load_inputs(args), tap=args.tap, timesteps=args.timesteps)
    except (OSError, ValueError, FloatingPointError, CheckpointError) as error:
        parser.error(str(error))
    print('written:', *pictures, sep='\n')


if __name__ == '__main__':
    main()
