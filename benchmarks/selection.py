"""Does the selection choose well? Rules that choose a timestep against what a probe finds at every timestep.

    python benchmarks/selection.py                        # all settings; what was measured before is read from the work dir
    python benchmarks/selection.py --tasks noisy digits
    python benchmarks/selection.py CONFIG --checkpoint CHECKPOINT --images 2000     # your own model and data

Two things are kept apart. *Measuring* takes the hours: for every setting, timestep and tap the accuracy of probes that are fitted
on a third of the images and tested on the others, and the value of every score on images of that third. A seed is the third.
*Rules* (rules.py) are functions from the scores' curves to a timestep; to judge them all takes seconds. A rule that chooses with
the images of a seed is judged by the mean of the probes that are tested on other images.
"""
import argparse
from functools import cached_property
from pathlib import Path

import record
import rules
import tasks
import torch
from probes import PARTS, inputs, tested
from record import ROOT
from tqdm import tqdm

from mmaselect.extract.fingerprint import weights_hash
from mmaselect.selection import TensorImages, scores
from mmaselect.selection.measure import Measurement, on_grid

TIMESTEPS = [0, 25, 50, 100, 150, 261, 400, 700]  # the constants of ``rules`` among them
MEASURED = 3  # raised where what is measured changes, so that what was kept is measured anew
# Scores, and the score that has the same ``observe``: what that gives of an image is kept, and makes the values of all of them.
SCORES = {
    'half_consistency': ('half_consistency', 'half_consistency'), 'view_consistency': ('view_consistency', 'view_consistency'),
    'cell_consistency': ('cell_consistency', 'cell_consistency'), 'rankme': ('rankme', 'rankme'),
    'hfr': ('hfr', 'hfr'), 'ridge': ('ridge', 'ridge'),
    'ridge, 0.1, accuracy': (dict(type='ridge', ridge=0.1, measure='accuracy'), 'ridge')}


class Measured:
    """What is measured of a task, timestep by timestep, and kept in a folder.

    Args:
        task (tasks.Task): Images in a random order: ``seed::PARTS`` are those of a seed.
        seen (int): Images of each seed that scores of two views look at; those of one view take no forward passes that the probes
            do not take, and look at all of a seed.
        labels (Sequence[int | None]): How many images of each class probes are fitted on; None is all.
        folder (Path | None): Where it is kept.
        keep_rows (bool): Whether to keep what the scores see of the images as well, for scores that come later.
    """

    def __init__(self, task, seen, labels=(None, ), folder=None, keep_rows=False):
        self.task, self.labels, self.folder, self.keep_rows = task, labels, folder, keep_rows
        images = task.images
        own = images.labels[:seen * PARTS]
        self.parts = [slice(seed, seen * PARTS, PARTS) for seed in range(PARTS)]
        self.classes = int(images.labels[images.labels != 255].max()) + 1
        self.asked = dict(
            measured=MEASURED, taps=[list(tap) for tap in task.extractor.taps], count=len(images), seen=len(own) // PARTS,
            images=images.images.double().sum().item(), labels=images.labels.sum().item(), weights=weights_hash(task.extractor),
            levels=task.extractor.process.sigma.sum().item())

    def fitted(self, labels):
        """Which images the probe of each part is fitted on."""
        everything = torch.arange(len(self.task.images))
        if labels is None:
            return [everything[seed::PARTS] for seed in range(PARTS)]
        return [everything[own][first_of_each(self.task.images.labels[own], labels)] for own in self.parts]

    @cached_property
    def views(self):
        """For each seed the augmented views that scores of two views compare, encoded."""
        pairs = [scores.build(name) for name in ROWS if scores.build(name).views > 1]
        found = []
        for seed, own in enumerate(self.parts):
            images = TensorImages(self.task.images.images[own], None, self.task.images.batch_size)
            found.append(Measurement(self.task.extractor, pairs, seed=seed, forward_batch=2 * images.batch_size))
            found[-1].add(images.batches(0, len(images)))
        return found

    def at(self, t):
        """Of a timestep: ``accuracy``, by labels, (taps, PARTS, PARTS), and ``values``, by labels and score, (seeds, taps)."""
        path = None if self.folder is None else self.folder / f't{t}.json'
        return record.kept(path, dict(self.asked, t=t, few=list(self.labels), scores=str(SCORES)), lambda: self._at(t))

    def _at(self, t):
        kept = None if self.folder is None else self.folder / f't{t}.pt'
        asked = str(dict(self.asked, t=t, few=list(self.labels)))
        if kept is not None and kept.is_file():
            seen = torch.load(kept, weights_only=True)
            if seen['asked'] == asked and set(ROWS) <= set(seen['rows']):
                return dict(accuracy=seen['accuracy'], values=self.values(seen['rows']))
        accuracy, rows = self.look(t)
        if self.keep_rows:
            torch.save(dict(asked=asked, accuracy=accuracy, rows=rows), kept)
        return dict(accuracy=accuracy, values=self.values(rows))

    @torch.no_grad()
    def look(self, t):
        """Accuracies of probes, and what scores see of the images: by score, seed and tap, rows (seen, ...)."""
        extractor, images = self.task.extractor, self.task.images
        single = {name: scores.build(name) for name in ROWS if scores.build(name).views == 1}
        noise, = extractor.draw(self.task.latents[0])  # the backbone's
        device = self.task.latents[0].device
        features, rows = [], {name: [[] for _ in extractor.taps] for name in single}
        for latent, labels in zip(self.task.latents, images.labels.split(images.batch_size), strict=True):
            maps = extractor.features(latent, t, noise)
            features.append([inputs(own, labels) for own in maps])
            cells = on_grid(labels, maps[0].shape[-2:], extractor.token_stride).to(device)
            for name, score in single.items():
                for own, found in zip(maps, rows[name], strict=True):
                    found.append(score.observe([own], cells).float().cpu())
        grid = maps[0].shape[-2:]
        rows = {name: [[torch.cat(own)[seed::PARTS] for own in taps] for seed in range(PARTS)] for name, taps in rows.items()}
        labels = images.labels.to(device)
        accuracy = {str(few): [] for few in self.labels}
        for own in zip(*features, strict=True):
            own = torch.cat(own)
            for few in self.labels:
                accuracy[str(few)].append(tested(own, labels, self.classes, grid, self.fitted(few)))
        for view in self.views:
            view.run([t])
            for place, score in enumerate(view.scores):
                rows.setdefault(score.name, []).append([own.float() for _, _, own, _ in view.gathered(place)])
            view.forget()
        return accuracy, rows

    def values(self, rows):
        """Of every score, for each number of labels, (seeds, taps)."""
        found = {}
        for few in self.labels:
            found[str(few)] = own = {}
            for name, (score, source) in SCORES.items():
                score = scores.build(score)
                own[name] = [[score.value(self.chosen(taps[tap], few, seed).double()) for tap in range(len(taps))]
                             for seed, taps in enumerate(rows[source])]
        return found

    def chosen(self, rows, few, seed):
        """Those of a seed's rows that are there where only so few images of each class are."""
        return rows if few is None else rows[first_of_each(self.task.images.labels[self.parts[seed]], few)]


ROWS = list(dict.fromkeys(rows for _, rows in SCORES.values()))


def first_of_each(labels, count):
    """Places of the first ``count`` of each class."""
    return torch.cat([(labels == name).nonzero()[:count, 0] for name in labels.unique()]).sort().values


def rows_of(name, setting, task, timesteps, found):
    """Rows of results: a setting, seed, timestep and tap, the accuracy on each of the two parts of the images that are not the
    seed's, and the value of every score."""
    process, few = task.extractor.process, str(setting.labels)
    for t, own in zip(timesteps, found, strict=True):
        log_snr = process.log_snr(t)
        clocked = t if setting.clock is None else tasks.on_clock(log_snr, setting.clock, len(process))
        for seed in range(PARTS):
            for k, (block, tap) in enumerate(task.extractor.taps):
                accuracy, others = own['accuracy'][few][k], [part for part in range(PARTS) if part != seed]
                # Tested on either of the other parts: by the probe of the seed, and by that of the remaining part.
                tests = {f'accuracy_{place}': round((accuracy[seed][part] + accuracy[sum(others) - part][part]) / 2, 3)
                         for place, part in enumerate(others, 1)}
                values = {score: float(f'{value[seed][k]:.5g}') for score, value in own['values'][few].items()}
                yield dict(setting=name, held_out=int(setting.held_out), dense=int(task.images.label_kind == 'pixel'), seed=seed,
                           t=clocked, log_snr=round(log_snr, 3), block=block, tap=tap, **tests, **values)


def from_config(path, checkpoint, count):
    """A task of a config's own model and ``count`` of its training images."""
    from mmaselect.openmm import DiTBackbone, launch
    from mmaselect.openmm.modules import find_module, unwrap
    from mmaselect.openmm.neck import AutoTimestepNeck
    from mmaselect.openmm.sweep_images import training_sample
    cfg = launch.load_config(launch.parser('').parse_args([path]))
    if checkpoint:
        launch.check_checkpoint(checkpoint)
    cfg.load_from, cfg.resume = checkpoint, False
    launch.prepare(cfg)
    runner = launch.build_runner(cfg)
    runner.load_or_resume()
    model = unwrap(runner.model)
    backbone, neck = find_module(model, DiTBackbone), find_module(model, AutoTimestepNeck)
    if backbone is None or neck is None:
        raise SystemExit(f'{path} has no DiTBackbone or no AutoTimestepNeck')
    found = [(images.cpu(), labels) for _, images, labels in training_sample(cfg, model, neck.policy, count).batches(0, count)]
    if any(labels is None for _, labels in found) or len({images.shape[1:] for images, _ in found}) > 1:
        raise SystemExit('probes need labels, and images of one size: set image_size of the neck')
    images, labels = torch.cat([images for images, _ in found]), torch.cat([labels.cpu() for _, labels in found])
    if len(images) < 2 * PARTS:
        raise SystemExit(f'{path} gives {len(images)} training images, too few to fit probes on a third of them')
    return tasks.Task(Path(path).stem, backbone.unfolded().eval(),
                      TensorImages(images, labels, max(1, 100 * 64**2 // images[0, 0].numel())))


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', nargs='?', help='a config of your own, in place of the built-in settings')
    parser.add_argument('--checkpoint', help='weights for the config')
    parser.add_argument('--images', type=int, default=tasks.IMAGES,
                        help='a third is chosen and fitted on, the others are tested on')
    parser.add_argument('--masks', type=int, default=tasks.MASKS, help='images of the built-in settings that have masks')
    parser.add_argument('--seen', type=int, default=rules.SEEN, help='images of a seed that scores of two views look at')
    parser.add_argument('--timesteps', type=int, nargs='+', default=TIMESTEPS)
    parser.add_argument('--tasks', nargs='+', choices=tasks.TASKS, default=list(tasks.TASKS), metavar='TASK')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='of the built-in settings')
    parser.add_argument('--keep-rows', action='store_true',
                        help='keep what the scores see of the images, about 1 GB a setting: a new score then takes seconds')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'selection',
                        help='where what was found is kept: a run that was interrupted goes on from there')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'selection.csv.gz')
    return parser.parse_args(argv)


def measure(args):
    """All rows of the settings that are asked for; of those that cannot be measured it says why."""
    left = {name: tasks.missing(name) for name in args.tasks}
    for name, reason in left.items():
        if reason:
            print(f'{name} is left out: {reason}')
    names, rows, head = [name for name in args.tasks if not left[name]], [], record.head()
    if not names:
        raise SystemExit('no setting can be measured')
    with tqdm(total=len(names) * len(args.timesteps), desc='settings x timesteps') as bar:
        while names:
            setting = tasks.TASKS[names[0]].measured
            alike = [name for name in names if tasks.TASKS[name].measured == setting]
            # Those of all tasks, so that what is kept does not depend on which were asked for.
            labels = list(dict.fromkeys(own.labels for own in tasks.TASKS.values() if own.measured == setting))
            bar.set_postfix_str(alike[0])
            task = tasks.build(alike[0], args.images, args.masks, args.device)
            folder = args.work_dir / f'{setting.model}_{setting.source.__name__}_{setting.degrade.__name__}_{setting.size}'
            measured, found = Measured(task, args.seen, labels, folder, args.keep_rows), []
            folder.mkdir(parents=True, exist_ok=True)
            for t in args.timesteps:
                found.append(measured.at(t))
                bar.update(len(alike))
            for name in alike:
                rows += rows_of(name, tasks.TASKS[name], task, args.timesteps, found)
            names = [name for name in names if name not in alike]
            record.write(args.out, head, rows)  # at once, since the whole takes hours
    return rows


def main():
    args = parse()
    if args.config:
        head = record.head()
        task = from_config(args.config, args.checkpoint, args.images)
        measured = Measured(task, args.seen)
        found = [measured.at(t) for t in args.timesteps]
        rows = list(rows_of(task.name, tasks.Setting(None, None), task, args.timesteps, found))
        record.write(args.out, head, rows)
    else:
        rows = measure(args)
    print(f'{rules.report(rows)}\n\nwritten to {args.out}')


if __name__ == '__main__':
    main()
