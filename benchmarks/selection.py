"""Does the selection choose well? Every score against an exhaustive search, in one run.

    python benchmarks/selection.py                        # the table of benchmarks/README.md; hours on two cores
    python benchmarks/selection.py --tasks noisy --seeds 0
    python benchmarks/selection.py CONFIG --checkpoint CHECKPOINT --images 2000     # your own model and data

The exhaustive search fits a probe (closed-form ridge regression) for every timestep, block and tap, and tests it on other
images; its best is the oracle. Regret is the oracle's accuracy minus that of the timestep that a score picks, in points, for
each tap, and for the tap and timestep that it picks together ('joint'). The oracle is the luckiest of all candidates on its test
images, which no choice made on other images can be: the fair regret takes the timestep that is best in the searches of the
other seeds, on other images, for the oracle.
"""
import argparse
from pathlib import Path

import record
import tasks
import torch
from probes import clock, precision, remembered
from record import ROOT

from mmaselect.selection import Measurement, TensorImages, scores
from mmaselect.selection.candidates import even

SCORES = {
    'hfr': 'hfr', 'hfr, low cutoff': dict(type='hfr', cutoff=0.25), 'hfr, all but the mean': dict(type='hfr', cutoff=0.0),
    'hfr_coherent': 'hfr_coherent', 'view_consistency': 'view_consistency',
    'view_consistency, all': dict(type='view_consistency', components=None),
    'cell_consistency': 'cell_consistency', 'half_consistency': 'half_consistency', 'rankme': 'rankme',
    'alpha_req': 'alpha_req', 'lidar': 'lidar', 'fisher': 'fisher', 'ridge': 'ridge',
    'ridge, 0.1, accuracy': dict(type='ridge', ridge=0.1, measure='accuracy')}


def spearman(a, b):
    """Rank correlation of two lists, equal values sharing their rank; 0 where one of them is constant."""
    def ranks(values):
        values = torch.tensor(values, dtype=torch.float64)
        ranks = ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1)).double()
        return ranks - ranks.mean()
    a, b = ranks(a), ranks(b)
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return (a @ b / scale).item() if scale > 0 else 0.0


def measure(task, timesteps, names, passes, seed, bf16):
    """For each score its values (T, taps), the images and the forward passes that it looks at, and its seconds.

    Every score has the same number of forward passes per timestep: one that compares two views looks at half as many images.
    """
    built = {name: scores.build(SCORES[name]) for name in names}
    for views in {score.views for score in built.values()}:
        group = [name for name in names if built[name].views == views]
        images = min(passes // views, len(task.train))
        measurement = Measurement(task.extractor, [built[name] for name in group], seed=seed)
        start = clock()
        with precision(bf16):
            measurement.add(task.train.batches(0, images))
            measurement.run(timesteps)
        seconds = clock() - start
        for place, name in enumerate(group):
            start = clock()
            values = torch.zeros(len(timesteps), len(task.extractor.taps))
            for t, tap, rows, total in measurement.gathered(place):
                values[timesteps.index(t), tap] = built[name].value(rows, total)
            share = views / measurement.per_image  # of the forward passes, where nearly all of the time goes
            yield name, values, images, views * images * len(timesteps), seconds * share + clock() - start


def rows_of(task, timesteps, accuracy, others, exhaustive_seconds, name, values, images, forwards, seconds, seed):
    """A row per tap, and one for the joint choice. ``others`` is the mean of the other seeds' accuracies, or None."""
    common = dict(setting=task.name, model=task.model, dataset=task.dataset, score=name, seed=seed, images=images,
                  forwards=forwards, seconds=round(seconds, 1), exhaustive_seconds=round(exhaustive_seconds, 1))

    def row(block, tap, among):
        """Of the choice among some of the columns of both tables."""
        ours, theirs = values[:, among].flatten(), accuracy[:, among].flatten()  # (T * columns,)
        chosen, best = int(ours.argmax()), int(theirs.argmax())
        found, oracle, columns = theirs[chosen].item(), theirs[best].item(), len(ours) // len(timesteps)
        fair = None if others is None else round(theirs[others[:, among].flatten().argmax()].item() - found, 2)
        return dict(common, tap=tap, block=block, oracle_t=timesteps[best // columns], oracle=round(oracle, 2),
                    chosen_t=timesteps[chosen // columns], chosen=round(found, 2), regret_points=round(oracle - found, 2),
                    fair_regret_points=fair, spearman=round(spearman(ours.tolist(), theirs.tolist()), 3))

    taps = task.extractor.taps
    for k, (block, tap) in enumerate(taps):
        yield row(block, tap, [k])
    block, tap = taps[int(values.argmax()) % len(taps)]
    yield row(None, f'joint: {tap} of block {block}', slice(None))


def report(rows):
    """The table that is printed: per setting and score, over taps, blocks and seeds."""
    wide = 2 + max(len(row['setting']) for row in rows)
    lines = [f'{"setting":{wide}}{"score":24}{"oracle":>8}{"regret":>8}{"worst":>7}{"fair":>7}{"joint":>7}'
             f'{"rank":>7}{"t":>12}{"oracle t":>12}{"seconds":>9}{"exhaustive":>11}']
    for setting, name in dict.fromkeys((row['setting'], row['score']) for row in rows):
        own = [row for row in rows if (row['setting'], row['score']) == (setting, name)]
        taps, joint = [r for r in own if r['block'] is not None], [r for r in own if r['block'] is None]

        def mean(key, of):
            values = [row[key] for row in of if row[key] is not None]
            return sum(values) / len(values) if values else float('nan')

        def span(key, of=taps):
            return f'{min(r[key] for r in of)}-{max(r[key] for r in of)}'
        lines.append(f'{setting:{wide}}{name:24}{max(r["oracle"] for r in own):8.1f}{mean("regret_points", taps):8.2f}'
                     f'{max(r["regret_points"] for r in taps):7.2f}{mean("fair_regret_points", taps):7.2f}'
                     f'{mean("regret_points", joint):7.2f}'
                     f'{mean("spearman", taps):7.2f}{span("chosen_t"):>12}{span("oracle_t"):>12}'
                     f'{mean("seconds", taps):9.1f}{mean("exhaustive_seconds", taps):11.1f}')
    return '\n'.join(lines)


def from_config(path, checkpoint, images, test):
    """A task of a config's own model and training images, ``test`` of which the probes are tested on."""
    from mmaselect.openmm import DiTBackbone, hook, launch
    from mmaselect.openmm.neck import AutoTimestepNeck
    cfg = launch.load_config(launch.parser('').parse_args([path]))
    if checkpoint:
        launch.check_checkpoint(checkpoint)
    cfg.load_from, cfg.resume = checkpoint, False
    launch.prepare(cfg)
    runner = launch.build_runner(cfg)
    runner.load_or_resume()
    model = hook.unwrap(runner.model)
    backbone, neck = hook.find(model, DiTBackbone), hook.find(model, AutoTimestepNeck)
    if backbone is None or neck is None:
        raise SystemExit(f'{path} has no DiTBackbone or no AutoTimestepNeck')
    found = hook.images_of(cfg, model, neck, images + test)
    parts = [(part.cpu(), labels) for _, part, labels in found.batches(0, images + test)]
    if any(labels is None for _, labels in parts) or len({part.shape[1:] for part, _ in parts}) > 1:
        raise SystemExit('the exhaustive search needs labels, and images of one size: set image_size of the neck')
    x, y = torch.cat([part for part, _ in parts]), torch.cat([labels.cpu() for _, labels in parts])
    backbone.unfold()
    backbone.extractor.set_taps(neck.tap_candidates or hook.default_taps(backbone))
    test = min(test, len(x) // 3)
    return tasks.Task(Path(path).stem, str(checkpoint or path), 'training images', backbone.extractor.eval(),
                      TensorImages(x[test:], y[test:]), TensorImages(x[:test], y[:test]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', nargs='?', help='a config of your own, in place of the built-in settings')
    parser.add_argument('--checkpoint', help='weights for the config')
    parser.add_argument('--images', type=int, default=1000, help="images that the exhaustive search's probes are fitted on")
    parser.add_argument('--test-images', type=int, default=2000)
    parser.add_argument('--passes', type=int, default=512, help='forward passes per timestep that a score may take')
    parser.add_argument('--timesteps', type=int, default=20)
    parser.add_argument('--tasks', nargs='+', choices=tasks.TASKS, default=list(tasks.TASKS), metavar='TASK')
    parser.add_argument('--scores', nargs='+', choices=SCORES, default=list(SCORES), metavar='SCORE')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--bf16', action='store_true', help='features in bfloat16')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'selection',
                        help='where exhaustive searches are kept: a run that was interrupted goes on from there')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'selection.json')
    args = parser.parse_args()
    if args.config:
        args.seeds = args.seeds[:1]  # the images are the config's, the same for every seed
    else:
        tasks.check(args.tasks)
    head, rows = record.head(), []
    for name in [args.config] if args.config else args.tasks:
        found = {}  # seed -> task, accuracy, seconds
        for seed in args.seeds:
            task = (from_config(args.config, args.checkpoint, args.images, args.test_images) if args.config
                    else tasks.build(name, args.images, args.test_images, seed))
            timesteps = even(len(task.extractor.process), args.timesteps)
            path = None if args.config else args.work_dir / f'{name}_{seed}.json'.replace(' ', '_')
            with precision(args.bf16):
                found[seed] = task, *remembered(task, timesteps, path, args.bf16)
        for seed, (task, accuracy, seconds) in found.items():
            others = [table for other, (_, table, _) in found.items() if other != seed]
            others = sum(others) / len(others) if others else None
            for score, values, images, forwards, own in measure(task, timesteps, args.scores, args.passes, seed, args.bf16):
                rows += rows_of(task, timesteps, accuracy, others, seconds, score, values, images, forwards, own, seed)
            record.write(args.out, head, rows)  # at once, since the whole takes hours
        print(report([row for row in rows if row['setting'] == task.name]), flush=True)
    if len({row['setting'] for row in rows}) > 1:
        print(f'\n{report(rows)}')
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
