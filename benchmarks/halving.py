"""What halving loses: the default sweep, which drops candidates early, beside one that shows every image to every candidate.

    python benchmarks/halving.py                                          # every setting once; goes on where it was interrupted
    python benchmarks/halving.py --tasks 'noisy pixel' CamVid --seeds 0 1 2

Both choose from the same images, a third of a setting's, by the default policy. What a choice loses is read from the rows of
selection.py, between whose timesteps accuracy is interpolated; so run that first. Prints a table and writes results/halving.json.
"""
import argparse
from pathlib import Path

import numpy as np
import record
import rules
import tasks
import timing
import torch
from probes import PARTS

from mmaselect.selection import SelectionPolicy, TensorImages, sweep

KINDS = 'grid', 'halving'
COLUMNS = {'setting': 'setting', 'seed': 'seed', **{
    f'{kind}: {title}': (f'{key}_{kind}', form) for title, key, form in (
        ('t', 't', ''), ('points lost', 'regret', '.2f'), ('forward passes', 'forwards', '')) for kind in KINDS}}


def regret(seen, timestep):
    """Points lost at any timestep against the best of those that were measured, the mean over taps."""
    accuracy = seen.accuracy.numpy()  # (T, taps)
    found = [own.max() - np.interp(timestep, seen.timesteps, own) for own in accuracy.T]
    return float(np.mean(found))


def compare(task, seen, num_images):
    """The row of a setting and seed."""
    own = slice(seen.seed, None, PARTS)
    images = TensorImages(task.images.images[own], task.images.labels[own], task.images.batch_size)
    row = dict(setting=task.name, seed=seen.seed, images=min(num_images, len(images)))
    for kind in KINDS:
        found = sweep(task.extractor, images, SelectionPolicy(search=kind, num_images=num_images, controls=()), progress=True)
        row.update({f't_{kind}': found.timestep, f'forwards_{kind}': found.forwards,
                    f'regret_{kind}': regret(seen, found.timestep)})
    return row


def main(argv=None):
    plain = [name for name, setting in tasks.TASKS.items() if setting.clock is None and setting.labels is None]
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--tasks', nargs='+', choices=plain, default=plain, metavar='TASK', help='without clocks of their own')
    parser.add_argument('--seeds', nargs='+', type=int, choices=range(PARTS), default=[0], metavar='SEED')
    parser.add_argument('--images', type=int, default=tasks.IMAGES, help='of a setting, as in selection.py')
    parser.add_argument('--masks', type=int, default=tasks.MASKS, help='of a setting that has masks')
    parser.add_argument('--num-images', type=int, default=SelectionPolicy().num_images, help='of a sweep')
    parser.add_argument('--rows', type=Path, default=rules.RESULTS / 'selection.csv.gz')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', type=Path, default=rules.RESULTS / 'halving.json')
    args = parser.parse_args(argv)
    measured = {(seen.setting, seen.seed): seen for seen in rules.seen_of(record.read(args.rows)[1])}
    head, rows = record.head(), record.read(args.out)[1] if args.out.is_file() else []
    for name in args.tasks:
        seeds = [seed for seed in args.seeds if not any((row['setting'], row['seed']) == (name, seed) for row in rows)]
        why = tasks.missing(name) or (None if (name, 0) in measured else f'{args.rows} has no rows of it')
        if why or not seeds:
            print(f'{name}: {why or "is there"}')
            continue
        task = tasks.build(name, args.images, args.masks, args.device)
        for seed in seeds:
            rows.append(compare(task, measured[name, seed], args.num_images))
            record.write(args.out, head, rows)  # at once, since the whole takes an hour
    if not rows:
        raise SystemExit('no setting could be measured')
    mean = dict(setting='mean', seed='', **{f't_{kind}': '' for kind in KINDS}, **{
        f'{key}_{kind}': round(float(np.mean([row[f'{key}_{kind}'] for row in rows])), 2)
        for key in ('regret', 'forwards') for kind in KINDS})
    print(timing.table([*rows, mean], COLUMNS))


if __name__ == '__main__':
    main()
