"""Takes the backbone's weights out of a training checkpoint, in half precision: what is left of a pretraining.

    python tools/model_converters/publish_backbone.py work_dirs/mae/iter_10000.pth configs/baselines/mae_vit_fashion.pth

The result is a plain state dict, as init_cfg=dict(type='Pretrained', checkpoint=...) of a backbone takes it.
"""
import argparse
from pathlib import Path

import torch

from mmaselect.files import atomic
from mmaselect.openmm.safe_load import CheckpointError, load

PREFIX = 'backbone.'


def backbone_of(checkpoint):
    """The state dict of the backbone, floating-point weights in float16.

    Raises:
        ValueError: The checkpoint has none.
    """
    weights = {key.removeprefix(PREFIX): value.half() if value.is_floating_point() else value
               for key, value in checkpoint.get('state_dict', {}).items() if key.startswith(PREFIX)}
    if not weights:
        raise ValueError(f'no weight of the checkpoint has a name that begins with {PREFIX!r}: give one of tools/train.py')
    return weights


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('checkpoint', help='checkpoint that tools/train.py wrote')
    parser.add_argument('out', type=Path, help='file to write, .pth')
    args = parser.parse_args()
    try:
        weights = backbone_of(load(args.checkpoint, 'cpu'))
        with atomic(args.out) as part:
            torch.save(weights, part)
    except (OSError, ValueError, CheckpointError) as error:
        parser.error(str(error))
    print(f'wrote {args.out}: {sum(value.numel() for value in weights.values()):,} numbers, {args.out.stat().st_size:,} bytes')


if __name__ == '__main__':
    main()
