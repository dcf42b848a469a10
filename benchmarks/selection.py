"""Does the selection choose well? Every score against an exhaustive search, in one run.

    python benchmarks/selection.py                        # the table of benchmarks/README.md; hours on two cores
    python benchmarks/selection.py --tasks noisy --seeds 0
    python benchmarks/selection.py CONFIG --checkpoint CHECKPOINT --images 2000     # your own model and data

The exhaustive search fits a probe (closed-form ridge regression) for every timestep, block and tap on a third of the images, and
tests it on the other two thirds; its best is the oracle. Regret is the oracle's accuracy minus that of the timestep that a score
picks, which is the middle of its plateau, in points, for each tap, and for the tap and timestep that it picks together ('joint').
A seed is another third of the images to choose on and to fit probes on, and other views for the score. The oracle is the luckiest
of all candidates on its test images, which no choice made on other images can be: the fair regret takes the best of one third of
the images for the oracle, and compares on the other.
"""
import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import record
import tasks
import torch
from probes import PARTS, clock, exhaustive
from record import ROOT
from scipy.stats import spearmanr
from tables import report
from tqdm import tqdm

from mmaselect.extract import TAPS
from mmaselect.selection import Measurement, TensorImages, scores
from mmaselect.selection.candidates import even, middle
from mmaselect.selection.sweep import PLATEAU, randomised, weights_hash

RANDOM_IMAGES = 128  # on which scores are compared with those of random weights
SHARES = 4  # that a search is done in
# What each kind of work depends on, as it was when this process began.
SOURCES = {'search': record.digest('mmaselect/extract/**/*.py', 'benchmarks/probes.py', 'benchmarks/tasks.py'),
           'scores': record.digest('mmaselect/extract/**/*.py', 'mmaselect/selection/**/*.py', 'benchmarks/*.py')}
SCORES = {
    'hfr': 'hfr', 'hfr, low cutoff': dict(type='hfr', cutoff=0.25), 'hfr, all but the mean': dict(type='hfr', cutoff=0.0),
    'hfr_coherent': 'hfr_coherent', 'view_consistency': 'view_consistency',
    'view_consistency, all': dict(type='view_consistency', components=None),
    'cell_consistency': 'cell_consistency', 'half_consistency': 'half_consistency', 'rankme': 'rankme',
    'alpha_req': 'alpha_req', 'lidar': 'lidar', 'fisher': 'fisher', 'ridge': 'ridge',
    'ridge, 0.1, accuracy': dict(type='ridge', ridge=0.1, measure='accuracy'), 'auto': 'auto'}


def spearman(a, b):
    """Rank correlation of two lists; 0 where one of them is constant."""
    return float(spearmanr(a, b).statistic) if len(set(a)) > 1 and len(set(b)) > 1 else 0.0


def tabled(extractor, group, images, timesteps, seed):
    """For each score of a group its values on all of the images, (T, taps), and its seconds."""
    measurement = Measurement(extractor, group, seed=seed, forward_batch=images.batch_size)
    values, own = torch.zeros(len(group), len(timesteps), len(extractor.taps)), [0.0] * len(group)
    start = clock()
    measurement.add(images.batches(0, len(images)))
    seconds = clock() - start
    for at, timestep in enumerate(timesteps):
        start = clock()
        measurement.run([timestep])
        seconds += clock() - start
        for place, score in enumerate(group):
            start = clock()
            for _, tap, rows, total in measurement.gathered(place):
                values[place, at, tap] = score.value(rows, total)
            own[place] += clock() - start
        measurement.forget()  # the rows of all timesteps would take gigabytes
    for score, table, mine in zip(group, values, own, strict=True):
        # Its share of the forward passes, where nearly all of the time goes.
        yield score, table, seconds * score.views / measurement.per_image + mine


def measure(task, timesteps, names, passes, seed):
    """For each score by its name: its ``values`` [T][taps], ``ceiling`` [taps], the best that it gives random weights,
    or None, the ``images`` and the ``forwards`` that it looks at, and its ``seconds``.

    Every score has the same number of forward passes per timestep: one that compares two views looks at half as many images.
    """
    def part(count):
        return TensorImages(*(of[seed::PARTS][:count] for of in (task.images.images, task.images.labels)), task.images.batch_size)
    most, found = part(passes), {}
    built = {name: scores.build(SCORES[name], most) for name in names}
    for views in {score.views for score in built.values()}:
        group = [*dict.fromkeys(score for score in built.values() if score.views == views)]  # 'auto' is one of the others
        control = [score for score in group if score.comparable and not score.labelled]
        ceilings = {score: values.amax(0).tolist() for score, values, _ in tabled(
            randomised(task.extractor, seed), control, part(RANDOM_IMAGES), timesteps, seed)} if control else {}
        images = part(passes // views)
        for score, values, seconds in tabled(task.extractor, group, images, timesteps, seed):
            for name in (name for name in names if built[name] == score):
                found[name] = dict(values=values.tolist(), ceiling=ceilings.get(score), images=len(images),
                                   forwards=views * len(images) * len(timesteps), seconds=seconds)
    return {name: found[name] for name in names}


def rows_of(task, timesteps, accuracy, exhaustive_seconds, plateau, score_taps, name, seed, *, values, ceiling, images, forwards,
            seconds):
    """A row per tap, one for the joint choice, and one for that by what a tap has above its ceiling, if any. ``accuracy`` is that
    of this seed's probes, (PARTS - 1, T, taps), ``score_taps`` the features whose mean score chooses for every tap, if any, and
    the rest is ``measure``'s."""
    values, ceiling = torch.tensor(values), None if ceiling is None else torch.tensor(ceiling)
    common = dict(setting=task.name, model=task.model, dataset=task.dataset, score=name, plateau=plateau, score_taps=score_taps,
                  seed=seed, images=images, forwards=forwards, seconds=round(seconds, 1),
                  exhaustive_seconds=round(exhaustive_seconds, 1))

    def row(block, tap, among, values):
        """Of the choice among some of the columns of both tables: the column with the highest score, and there the plateau's."""
        columns = len(among)
        column = int(values[:, among].amax(0).argmax())
        chosen = int(middle(values[:, among[column]], timesteps, plateau)) * columns + column
        ours, parts = values[:, among].flatten(), accuracy[:, :, among].flatten(1)  # (T * columns,), (PARTS - 1, T * columns)
        theirs = parts.mean(0)
        best = int(theirs.argmax())
        found, oracle = theirs[chosen].item(), theirs[best].item()
        bests = [parts[other, parts[1 - other].argmax()] for other in (0, 1)]  # each the best on the other's images
        return dict(common, tap=tap, block=block, oracle_t=timesteps[best // columns], oracle=round(oracle, 2),
                    chosen_t=timesteps[chosen // columns], chosen=round(found, 2), regret_points=round(oracle - found, 2),
                    fair_regret_points=round((sum(bests) / len(bests)).item() - found, 2),
                    spearman=round(spearman(ours.tolist(), theirs.tolist()), 3))

    taps = task.extractor.taps
    judges = [k for k, (_, tap) in enumerate(taps) if tap in (score_taps or ())]
    mean = values[:, judges].mean(1, keepdim=True).expand_as(values)
    for k, (block, tap) in enumerate(taps):
        yield row(block, tap, [k], mean if judges else values)
    for kind, own in (('joint', values), ('above random', None if ceiling is None else values - ceiling)):
        if own is not None:
            block, tap = taps[int(own.amax(0).argmax())]
            yield row(None, f'{kind}: {tap} of block {block}', list(range(len(taps))), own)


def from_config(path, checkpoint, count):
    """A task of a config's own model and ``count`` of its training images."""
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
    found = [(images.cpu(), labels) for _, images, labels in hook.images_of(cfg, model, neck, count).batches(0, count)]
    if any(labels is None for _, labels in found) or len({images.shape[1:] for images, _ in found}) > 1:
        raise SystemExit('the exhaustive search needs labels, and images of one size: set image_size of the neck')
    images, labels = torch.cat([images for images, _ in found]), torch.cat([labels.cpu() for _, labels in found])
    if len(images) < 2 * PARTS:
        raise SystemExit(f'{path} gives {len(images)} training images, too few to fit probes on a third of them')
    backbone.unfold()
    backbone.extractor.set_taps(neck.tap_candidates or hook.default_taps(backbone))
    return tasks.Task(Path(path).stem, str(checkpoint or path), 'training images', backbone.extractor.eval(),
                      TensorImages(images, labels, max(1, 100 * 64**2 // images[0, 0].numel())))


@lru_cache(1)
def setting(name, images, masks, device, config, checkpoint):
    """A setting's task; that of a config where there is one."""
    return from_config(config, checkpoint, images) if config else tasks.build(name, images, masks, device)


def work(args, name, kind, which):
    """A part of what a setting takes, kept in a file of the work dir: of its 'search' one of ``SHARES`` of the timesteps, of the
    'scores' those of a seed."""
    task = setting(name, args.images, args.masks, args.device, args.config, args.checkpoint)
    missing = set(args.score_taps or ()).difference(tap for _, tap in task.extractor.taps)
    if missing:
        raise SystemExit(f'{name} reads no {", ".join(sorted(missing))}: name other --score-taps, or add to the neck\'s '
                         'tap_candidates')
    timesteps, device = even(len(task.extractor.process), args.timesteps), next(task.extractor.parameters()).device.type
    asked = dict(timesteps=timesteps, taps=[list(tap) for tap in task.extractor.taps], count=len(task.images),
                 images=task.images.images.double().sum().item(), labels=task.images.labels.sum().item(),
                 weights=weights_hash(task.extractor), bf16=args.bf16, device=device, torch=torch.__version__,
                 sources=SOURCES[kind])
    path = None if args.config else args.work_dir / f'{name}_{kind}_{which}.json'.replace(' ', '_')
    with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
        if kind == 'scores':
            asked.update({name: str(SCORES[name]) for name in args.scores}, passes=args.passes)
            return record.kept(path, asked, lambda: measure(task, timesteps, args.scores, args.passes, which))

        def search():
            accuracy, seconds, encoding = exhaustive(task, timesteps[which::SHARES])
            return dict(accuracy=accuracy.tolist(), seconds=seconds, encoding=encoding)
        return record.kept(path, dict(asked, parts=PARTS), search)


def worked(args, parts):
    """What ``work`` found of each part, in their order, as soon as it is there."""
    if args.workers == 1:
        yield from (work(args, *part) for part in parts)
        return
    with ProcessPoolExecutor(args.workers, get_context('spawn'), torch.set_num_threads, (1, )) as pool:
        futures = [pool.submit(work, args, *part) for part in parts]
        try:
            yield from (future.result() for future in futures)
        finally:
            pool.shutdown(cancel_futures=True)  # where one failed, the others are not waited for


def rows_of_setting(args, name, found):
    """All rows of a setting, from what ``work`` found of its parts, by their kind and place."""
    task = setting(name, args.images, args.masks, args.device, args.config, args.checkpoint)
    timesteps = even(len(task.extractor.process), args.timesteps)
    searches = {which: search for (kind, which), search in found.items() if kind == 'search'}
    accuracy = torch.empty(PARTS, PARTS - 1, len(timesteps), len(task.extractor.taps))
    for share, search in searches.items():
        accuracy[:, :, share::SHARES] = torch.tensor(search['accuracy'])
    seconds = sum(search['seconds'] for search in searches.values()) + max(search['encoding'] for search in searches.values())
    return [row for seed in args.seeds for score, own in found['scores', seed].items()
            for row in rows_of(task, timesteps, accuracy[seed], seconds, args.plateau, args.score_taps, score, seed, **own)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', nargs='?', help='a config of your own, in place of the built-in settings')
    parser.add_argument('--checkpoint', help='weights for the config')
    parser.add_argument('--images', type=int, default=6000, help='a third is chosen and fitted on, the others are tested on')
    parser.add_argument('--masks', type=int, default=1500, help='images of the built-in settings that have masks')
    parser.add_argument('--passes', type=int, default=512, help='forward passes per timestep that a score may take')
    parser.add_argument('--timesteps', type=int, default=20)
    parser.add_argument('--plateau', type=float, default=PLATEAU, help='as of the sweep; 0 takes the best')
    parser.add_argument('--score-taps', nargs='+', choices=TAPS, metavar='TAP',
                        help='features whose mean score over the blocks chooses for every tap: value is the neck\'s "auto"')
    parser.add_argument('--tasks', nargs='+', choices=tasks.TASKS, default=list(tasks.TASKS), metavar='TASK')
    parser.add_argument('--scores', nargs='+', choices=SCORES, default=list(SCORES), metavar='SCORE')
    parser.add_argument('--seeds', type=int, nargs='+', choices=range(PARTS), default=list(range(PARTS)))
    parser.add_argument('--bf16', action='store_true', help='features in bfloat16')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='of the built-in settings')
    parser.add_argument('--workers', type=int, default=1, help='processes of one thread each; a config of your own takes one')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'selection',
                        help='where what was found is kept: a run that was interrupted goes on from there')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'selection.csv.gz',
                        help='a .csv.gz or .json file; tables.py makes the tables anew from it')
    args = parser.parse_args()
    if args.config and args.workers > 1:
        parser.error('a config of your own takes one worker')
    names = [Path(args.config).stem] if args.config else args.tasks
    if not args.config:
        tasks.check(args.tasks)
    head, rows = record.head(), []
    kinds = [('search', share) for share in range(min(SHARES, args.timesteps))] + [('scores', seed) for seed in args.seeds]
    found = worked(args, [(name, *kind) for name in names for kind in kinds])
    with tqdm(total=len(names) * len(kinds), desc='search and scores', unit=' parts') as bar:
        for name in names:
            own = {}
            for kind in kinds:
                own[kind] = next(found)
                bar.update()
            rows += rows_of_setting(args, name, own)
            record.write(args.out, head, rows)  # at once, since the whole takes hours
            tqdm.write(report([row for row in rows if row['setting'] == name]))
    if len(names) > 1:
        print(f'\n{report(rows)}')
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
