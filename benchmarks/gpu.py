"""What only a GPU can answer, in one command of less than nine minutes.

    make gpu                                        # on a machine with a GPU; rows go to benchmarks/results
    python benchmarks/gpu.py --out FOLDER           # or to another folder
    python benchmarks/gpu.py --quick --device cpu   # tiny sizes on a CPU, which shows that it runs

It runs the forward, training and sweep benchmarks beside their peers, the tests that touch devices, and a short pretraining in
bfloat16. Each step has a limit of time, is stopped there, and leaves the rows that it has written; the next one runs in any case.
``gpu.json`` lists the steps, and a log of each lies beside it.
"""
import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import record
import timing
import torch
from PIL import Image

ROOT = record.ROOT
COLUMNS = {'step': 'step', 'outcome': 'outcome', 'seconds': ('seconds', '.0f'), 'limit': ('limit', '.0f')}
PRETRAINING_STEPS = 500
QUICK_LIMIT = 4  # times the limits: a laptop's CPU, where nothing is measured


def pictures(folder):
    """Writes the pictures of fashion_dit's samples into ``folder``, one file each: (64, 64) pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(ROOT / 'configs' / 'fashion_dit' / 'samples.png') as sheet:
        for y in range(2, sheet.height - 64, 66):
            for x in range(2, sheet.width - 64, 66):
                sheet.crop((x, y, x + 64, y + 64)).save(folder / f'{y}_{x}.png')
    return folder


def steps(device, quick, out):
    """(name, seconds at most, words of the command after ``python``) of each step; 540 seconds in all."""
    suffix = '' if device == 'cpu' else f'_{device}'

    def bench(name, *options):
        words = [f'benchmarks/{name}.py', '--device', device, '--out', str(out / f'{name}{suffix}.json')]
        return [*words, *(['--quick'] if quick else options)]
    work_dir = out / 'pretraining'
    pretraining = ['tools/pretrain_dit.py', str(work_dir / 'dit'), str(pictures(work_dir / 'images')), '--work-dir',
                   str(work_dir / 'work'), '--device', device, '--pixels', '--bf16', '--size', '16' if quick else '32',
                   '--dit-steps', '3' if quick else str(PRETRAINING_STEPS), '--dit-batch', '8' if quick else '256']
    return [
        ('forward', 130, bench('forward', '--dtype', 'bfloat16', '--attention', 'flash_attention', '--seconds', '2',
                               '--batches', '64', '--memory', 'none')),
        ('training', 100, bench('training', '--dtype', 'bfloat16', '--tokens', '256', '--batch', '64', '--seconds', '4')),
        ('sweep', 160, bench('sweep', '--images', '64', '--repeats', '1')),
        ('tests', 60, ['-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/test_device.py']),
        ('pretraining', 90, pretraining)]


def run(words, limit, log):
    """'done', 'failed' or 'stopped', the latter where it took longer than ``limit`` seconds. What it prints goes to ``log``."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    with open(log, 'w') as file:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            return 'done' if process.wait(limit) == 0 else 'failed'
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the processes that it started too
            process.wait()
            return 'stopped'


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='tiny sizes: shows that it runs, not how fast')
    parser.add_argument('--only', nargs='+', metavar='STEP', help='of forward, training, sweep, tests, pretraining')
    parser.add_argument('--out', type=Path, help='folder of rows and logs (default: $OUT, else benchmarks/results; of --quick '
                        'work_dirs/gpu)')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch finds no GPU: run it on a machine that has one, or with --quick --device cpu to see that it runs')
    results = ROOT / 'work_dirs' / 'gpu' if args.quick else ROOT / 'benchmarks' / 'results'
    out = (args.out or Path(os.environ.get('OUT', results))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    longer = QUICK_LIMIT if args.quick else 1
    planned = [(name, longer * limit, words) for name, limit, words in steps(args.device, args.quick, out)]
    unknown = set(args.only or ()) - {name for name, *_ in planned}
    if unknown:
        parser.error(f'no such step: {", ".join(sorted(unknown))}')
    head, rows = record.head(), []
    for name, limit, words in planned:
        if args.only is None or name in args.only:
            start = time.perf_counter()
            outcome = run(words, limit, out / f'{name}.log')
            row = dict(step=name, outcome=outcome, seconds=time.perf_counter() - start, limit=limit, command=words)
            rows.append(row)
            record.write(out / 'gpu.json', head, rows)
            print(f'{name}: {outcome} after {row["seconds"]:.0f} s, log in {out / name}.log', flush=True)
    print(f'\n{timing.table(rows, COLUMNS)}\n\nwritten to {out}')
    return int(any(row['outcome'] != 'done' for row in rows))


if __name__ == '__main__':
    sys.exit(main())
