"""Is it the pretraining? fashion_dit against the same architecture with random weights, under the same schedule.

    python benchmarks/pretrained_vs_random.py

trains and tests on the fashion scenes (mIoU) and on Fashion-MNIST with 2,000 labels (accuracy), each with its own sweep, prints a
table and writes benchmarks/results/pretrained_vs_random.json. There are two controls: all weights random, and a random
transformer on the latents of the trained VAE.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import record
from record import ROOT

TASKS = {'fashion_scenes': 'mIoU', 'fashion_mnist': 'accuracy/top1'}
WEIGHTS = {'pretrained': ('aselect',), 'random': ('random',),
           'random, trained VAE': ('random', 'model.backbone.arch.vae=configs/fashion_dit')}


def last_value(work_dir, metric):
    """The metric of the newest run in a work dir, from the scalars that MMEngine writes a line each."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    values = [row[metric] for row in map(json.loads, logs[-1].read_text().splitlines()) if metric in row] if logs else []
    if not values:
        raise SystemExit(f'no {metric} was logged in {work_dir}')
    return values[-1]


def measure(weights, task, seed, work_dir):
    kind, *options = WEIGHTS[weights]
    subprocess.run([sys.executable, 'tools/train.py', f'configs/dit_{kind}_{task}.py', '--work-dir', str(work_dir),
                    '--cfg-options', f'randomness.seed={seed}', f'model.neck.selection.seed={seed}', *options],
                   cwd=ROOT, check=True)
    selection = json.loads((work_dir / 'timestep_selection.json').read_text())
    return dict(task=task, weights=weights, seed=seed, metric=TASKS[task], value=round(last_value(work_dir, TASKS[task]), 2),
                timestep=selection['timestep'], sweep_seconds=round(selection['seconds'], 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'pretrained_vs_random')
    args = parser.parse_args()
    head = record.head()
    rows = [measure(weights, task, seed, args.work_dir / f'{weights}_{task}_{seed}'.replace(', ', '_').replace(' ', '_'))
            for task in TASKS for weights in WEIGHTS for seed in args.seeds]
    record.write(ROOT / 'benchmarks' / 'results' / 'pretrained_vs_random.json', head, rows)
    print(f'\n{"task":16}{"metric":15}{"weights":22}{"seed":>5}{"timestep":>10}{"value":>8}')
    for row in rows:
        print(f'{row["task"]:16}{row["metric"]:15}{row["weights"]:22}{row["seed"]:5}{row["timestep"]:10}{row["value"]:8.2f}')


if __name__ == '__main__':
    main()
