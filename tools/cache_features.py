"""Runs a config's frozen DiT once over its images and writes what a linear probe needs to the disk.

    python tools/cache_features.py configs/dit_aselect_fashion_mnist.py
    python tools/train.py configs/cached/linear_probe_fashion_mnist.py

The timestep is the config's, the checkpoint's, or is chosen first. Written are, for every image and channel of the taps, mean and
deviation over the map, or over each part of the neck's grid. CachedFeatures makes maps of them from which
AutoTimestepNeck(output='vector', pool='mean' or 'grid', norm='channel' or None) gets what it would get from the DiT's own: any
number of heads can be trained in seconds, and their checkpoints fit the config with the DiT. RandomFlip is left out; other random
augmentation is refused.

A call that was stopped goes on where it was. One process at a time.
"""
from mmengine.runner import autocast

from mmaselect.openmm import AutoTimestepHook
from mmaselect.openmm.caches import options
from mmaselect.openmm.caches.writers import cache_features
from mmaselect.openmm.safe_load import CheckpointError


def main():
    parser = options.parser(__doc__.split('\n')[0], 'features')
    parser.add_argument('checkpoint', nargs='?', help='weights to load first, where it has the timestep or a fine-tuned DiT')
    args = parser.parse_args()
    try:
        runner = options.runner_of(args)
        with autocast(enabled=args.amp):
            AutoTimestepHook().select(runner)
            cache_features(runner, args.out, args.split, batch_size=args.batch_size, amp=args.amp)
    except (OSError, ValueError, CheckpointError) as error:
        parser.error(str(error))
    runner.logger.info(f'features written to {args.out}')


if __name__ == '__main__':
    main()
