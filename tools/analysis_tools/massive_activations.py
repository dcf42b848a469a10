"""Finds the massive activations of a config's DiT: a few channels, far larger than all others, that say little of the image.

    python tools/analysis_tools/massive_activations.py configs/dit_aselect_ade20k.py [CHECKPOINT]

looks at training images at the timestep of the config or of the checkpoint, or chooses it first, and prints for every timestep
and tap the channels whose mean magnitude exceeds the median of all channels by a factor. The last line is ready to be put into
model.neck. All of it is written to massive_activations.json in the work dir.
"""
import json
from pathlib import Path

import torch
from mmengine.runner import autocast
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from mmaselect.extract.massive import magnitudes, massive_channels
from mmaselect.files import atomic
from mmaselect.openmm import AutoTimestepHook, AutoTimestepNeck, DiTBackbone, launch
from mmaselect.openmm.modules import find_module, unwrap
from mmaselect.openmm.safe_load import CheckpointError
from mmaselect.openmm.sweep_images import training_sample
from mmaselect.selection.result import tap_name


@torch.no_grad()
def measure(backbone, images):
    """Mean magnitude of every channel over the images, (timesteps taps, D)."""
    device, total, batches = backbone.timestep.device, 0, images.batches(0, len(images))
    with tqdm(desc='massive activations', unit=' images', total=len(images)) as bar:
        for indices, batch, _ in batches:
            total += len(indices) * torch.stack([magnitudes(m) for m in backbone(batch.to(device))])
            bar.update(len(indices))
    return total / len(images)


def report(backbone, measured, factor):
    """A dict per timestep and tap, and the channels to discard of each tap: those that are massive at any timestep."""
    taps = [tap_name(tap) for tap in backbone.extractor.taps]
    places = [(t, tap) for t in backbone.timesteps for tap in taps]
    rows = [dict(timestep=t, tap=tap, median=magnitude.quantile(0.5).item(), channels=massive_channels(magnitude, factor))
            for (t, tap), magnitude in zip(places, measured, strict=True)]
    return rows, [sorted({channel for row in rows if row['tap'] == tap for channel in row['channels']}) for tap in taps]


def show(rows, factor):
    table = Table('t', 'tap', 'median magnitude', f'channels above {factor:g} x the median (how many times it)')
    for row in rows:
        channels = ', '.join(f'{channel} ({ratio:.0f}x)' for channel, ratio in row['channels'].items())
        table.add_row(str(row['timestep']), row['tap'], f'{row["median"]:.4g}', channels or 'none')
    Console().print(table)


def main():
    parser = launch.parser(__doc__.split('\n')[0])
    parser.add_argument('checkpoint', nargs='?', help='weights to load first, and their choice of a timestep')
    parser.add_argument('--factor', type=float, default=50, help='how far above the median a channel is massive (default: 50)')
    parser.add_argument('--images', type=int, default=32, help='training images to look at (default: 32)')
    args = parser.parse_args()
    if args.images < 1 or args.factor < 1 or args.launcher != 'none':
        parser.error('--images and --factor must be at least 1, and one process is enough for this: leave --launcher out')
    try:
        cfg = launch.load_config(args)
        cfg.load_from, cfg.resume = args.checkpoint or cfg.get('load_from'), False
        launch.prepare(cfg)
    except (OSError, ValueError, CheckpointError) as error:
        parser.error(str(error))
    runner = launch.build_runner(cfg)
    runner.load_or_resume()
    model = unwrap(runner.model).eval()
    backbone, neck = find_module(model, DiTBackbone), find_module(model, AutoTimestepNeck)
    if backbone is None or neck is None:
        parser.error(f'{args.config} has no DiTBackbone with an AutoTimestepNeck, which would discard the channels')
    with autocast(enabled=args.amp):
        AutoTimestepHook().select(runner)
        images = training_sample(cfg, model, neck.policy, args.images)
        rows, discard = report(backbone, measure(backbone, images), args.factor)
    path = Path(runner.work_dir) / 'massive_activations.json'
    with atomic(path) as part:
        part.write_text(json.dumps(dict(config=args.config, checkpoint=cfg.load_from, factor=args.factor, images=len(images),
                                        maps=rows, discard_channels=discard), indent=2))
    show(rows, args.factor)
    print(f'written to {path}\ndiscard_channels={discard}')


if __name__ == '__main__':
    main()
