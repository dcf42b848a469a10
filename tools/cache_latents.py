"""Writes the latents of a config's images to the disk, so that training on them skips the VAE.

    python tools/cache_latents.py configs/dit_aselect_fashion_scenes.py --flip
    python tools/train.py configs/cached/latents_fashion_scenes.py

In the config to train, LoadLatents stands for LoadImageFromFile and all that followed it but LoadAnnotations, FlipLatents stands
for RandomFlip, the data_preprocessor leaves its input as it is, and the backbone has the folder as ``latents`` and a fixed
timestep, which tools/select_timestep.py chooses on the config with images. Of random augmentation only the flip can be cached.

A call that was stopped goes on where it was. One process at a time.
"""
from mmaselect.openmm.caches import options
from mmaselect.openmm.caches.writers import cache_latents
from mmaselect.openmm.safe_load import CheckpointError


def main():
    parser = options.parser(__doc__.split('\n')[0], 'latents')
    parser.add_argument('--checkpoint', help="weights to load first, where the VAE is not the config's own")
    parser.add_argument('--std', action='store_true', help="also write the posterior's deviation, for LoadLatents(draw='sample')")
    parser.add_argument('--flip', action='store_true', help='also write the latents of the flipped images, for FlipLatents')
    args = parser.parse_args()
    try:
        runner = options.runner_of(args)
        cache_latents(runner, args.out, args.split, flip=args.flip, std=args.std, batch_size=args.batch_size)
    except (OSError, ValueError, CheckpointError) as error:
        parser.error(str(error))
    runner.logger.info(f'latents written to {args.out}')


if __name__ == '__main__':
    main()
