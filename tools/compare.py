"""Trains and tests several configs under the same seeds and prints one table of what they reach and what they cost.

    python tools/compare.py configs/dit_aselect_fashion_scenes.py configs/baselines/resnet18_fashion_scenes.py --seeds 0 1 2

The configs may belong to both toolboxes. Where those that test on the same data differ in data, schedule or head, a warning
names the setting. Every run, a config with a seed, is trained, tested and measured by processes of its own, with tools/train.py,
tools/test.py and tools/analysis_tools/cost.py, in WORK_DIR/<config>/seed_<seed>, where run.log has all they print.

With --swap DIT every config that has no DiT yet gets a twin with one (see tools/swap_backbone.py), under the same data, schedule
and seeds; a config may then be one that a toolbox brings, as mmseg::FOLDER/NAME.py:

    python tools/compare.py mmseg::pspnet/pspnet_r50-d8_4xb4-40k_voc12aug-512x512.py --swap facebook/DiT-XL-2-512

The table (.md), its figures and those of every run (.json) and a bar chart (.png) are written anew after each run. The same
command goes on where it was interrupted: what is done is kept, and a training resumes from its newest checkpoint. A run that
fails does not stop the others; it is named at the end with its log, and the next call tries it again.
"""
import argparse
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import compare_table
from mmengine.config import Config
from tqdm import tqdm

from mmaselect.files import atomic
from mmaselect.openmm import launch, swap
from mmaselect.openmm.checkpoints import check_writable, latest_checkpoint
from mmaselect.openmm.configs import nodes, type_name
from mmaselect.openmm.swap import inherit
from mmaselect.report.run import scalars

TOOLS = Path(__file__).resolve().parent
PROGRESS = re.compile(r'(?:Iter|Epoch)\(\w+\)(?: *\[[ \d/]+\])+(?:.*?eta: [\d:]+)?|timestep sweep: +\d+%')
PAUSE = 1.0  # seconds between two looks at a process
# Of the configs that test on the same data, these settings should agree, except for those that a backbone brings with it or
# that change the speed alone.
SHARED = ('train_dataloader', 'test_dataloader', 'test_evaluator', 'optim_wrapper', 'param_scheduler', 'train_cfg',
          'model.decode_head', 'model.auxiliary_head', 'model.head', 'model.test_cfg')
OWN = {'in_channels', 'in_index', 'c1_in_channels', 'num_workers', 'persistent_workers', 'pin_memory', 'val_interval'}


class RunError(Exception):
    """A run could not be finished."""


@dataclass
class Run:
    """A config with a seed. ``record`` is what is known of it, and is kept in run.json."""
    config: str
    cfg: Config
    seed: int
    folder: Path
    options: list  # of --cfg-options, as words
    record: dict = field(default_factory=dict)

    @property
    def name(self):
        return Path(self.config).stem

    @property
    def data(self):
        return data_of(self.cfg)

    @property
    def log(self):
        return self.folder / 'run.log'

    def load(self):
        """Reads what an earlier call left.

        Raises:
            ValueError: It comes from another config, so that it says nothing about this one.
        """
        self.record = dict(settings=settings_hash(self.cfg))
        path = self.folder / 'run.json'
        if path.is_file():
            found = json.loads(path.read_text())
            if found['settings'] != self.record['settings']:
                raise ValueError(f'{self.folder} holds a run of {self.name} with other settings than it has now: remove that '
                                 'folder, or choose another with --work-dir')
            self.record = found

    def note(self, **found):
        """Adds to the record."""
        self.record.update(found)
        with atomic(self.folder / 'run.json') as part:
            part.write_text(json.dumps(self.record, indent=1) + '\n')


# What configs should have in common


def leaves(node, path=''):
    """Dotted path -> value of every setting in a tree of dicts and lists; None counts as absent. The steps of a pipeline go by
    their types, so that one step more does not shift the others."""
    if not isinstance(node, (dict, list, tuple)):
        return {} if node is None else {path: node}
    order = {}
    if path.endswith('.pipeline'):
        names = [type_name(step) for step in node]
        order[path] = ', '.join(names)
        node = {f'{name}.{names[:k].count(name)}' if name in names[:k] else name: {**step, 'type': None}
                for k, (name, step) in enumerate(zip(names, node, strict=True))}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return order | {key: value for name, child in items for key, value in leaves(child, f'{path}.{name}'.lstrip('.')).items()}


def differences(one, other):
    """Of two configs, what should agree and does not: [(dotted path, value, value)]; None where one lacks the setting."""
    both = [{path: value for path, value in leaves(cfg.to_dict()).items()
             if path.startswith(SHARED) and not OWN & set(path.split('.'))} for cfg in (one, other)]
    paths = dict.fromkeys([*both[0], *both[1]])
    return [(path, both[0].get(path), both[1].get(path)) for path in paths if both[0].get(path) != both[1].get(path)]


def settings_hash(cfg):
    """By which a config is known again, wherever it is run."""
    settings = {key: value for key, value in cfg.to_dict().items() if key not in ('work_dir', 'launcher')}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def data_of(cfg):
    """The name of the data that a config tests on: that of its folder, else of its class.

    Raises:
        ValueError: There is none, as in a pretraining.
    """
    if cfg.get('test_dataloader') is None:
        raise ValueError(f'{cfg.filename} has no test_dataloader, so there is nothing to compare it by')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return Path(dataset.get('data_root') or type_name(dataset)).name


def warnings_about(cfgs):
    """A sentence for every config that differs from the first one on the same data."""
    first, sentences = {}, []
    for name, cfg in cfgs.items():
        other = first.setdefault(data_of(cfg), name)
        found = [f'{path} ({theirs!r}, not {ours!r})' for path, ours, theirs in differences(cfgs[other], cfg)]
        if found:
            sentences.append(f'{name} differs from {other} in {", ".join(found)}')
    return sentences


# All that is to be run


def load_config(path, options):
    """The config as tools/train.py will see it."""
    words = ['--cfg-options', *options] if options else []
    return launch.load_config(launch.parser('').parse_args([str(path), *words]))


def seeded(cfg, seed):
    """The options that give a run its seed: weights and order of the images, and the sample that the timestep is chosen on."""
    necks = [path for path, value in leaves(cfg.model.to_dict(), 'model').items()
             if path.endswith('.type') and str(value).endswith('AutoTimestepNeck')]
    return [f'randomness.seed={seed}', *(f'{path[:-len("type")]}selection.seed={seed}' for path in necks)]


def plan(args):
    """All runs, one seed of every config before the next, and the warnings.

    Raises:
        OSError: A config is not there, or the work dir cannot be written.
        ValueError: A config cannot be compared, two have one name, or an earlier run had other settings.
    """
    cfgs = {}
    for config in args.configs:
        if Path(config).stem in cfgs:
            raise ValueError(f'two configs are called {Path(config).stem}, and runs are kept by that name: rename one')
        cfgs[Path(config).stem] = load_config(config, args.cfg_options)
    warnings = warnings_about(cfgs)
    check_writable(args.work_dir)
    runs = []
    for seed in dict.fromkeys(args.seeds):
        for config, (name, cfg) in zip(args.configs, cfgs.items(), strict=True):
            options = [*args.cfg_options, *seeded(cfg, seed)]
            runs.append(Run(config, load_config(config, options), seed, args.work_dir / name / f'seed_{seed}', options))
            runs[-1].load()
    return runs, warnings


def with_twins(configs, pretrained, folder):
    """The configs, each that has no DiT followed by its swapped twin, which is written into ``folder``.

    Raises:
        OSError: A config or the DiT is not there.
        ValueError: A config cannot be swapped.
    """
    found = []
    for config in configs:
        path = inherit.find(config)
        cfg = Config.fromfile(path)
        found.append(str(path))
        if any(type_name(node) == 'DiTBackbone' for node in nodes(cfg.get('model'))):
            continue
        twin = folder / f'{path.stem}_dit.py'
        text = inherit.inheriting(config if '::' in config else path, cfg, swap(cfg, pretrained), twin,
                                  f'{config} on {pretrained}, by tools/compare.py.')
        with atomic(twin) as part:
            part.write_text(text)
        found.append(str(twin))
    return found


# One run


def call(tool, arguments, log, tick):
    """Runs one of our tools in a process of its own, which writes to the end of ``log``.

    The process locks its log for as long as it lives, so that no other joins one that survived the end of its comparison.

    Args:
        tool (str): Script below tools/.
        arguments (list): Its command line.
        log (Path): File.
        tick (Callable): Called every second with the seconds that have passed.

    Returns:
        float: The largest resident set of the process, in MB.

    Raises:
        RunError: It ended with an error, or another process is at work on the same run.
    """
    with open(log, 'a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError('another process is at work on this run, perhaps of a comparison that was killed') from None
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, TOOLS / tool, *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT)
        try:
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                tick(time.monotonic() - start)
                time.sleep(PAUSE)
        except BaseException:  # Ctrl-C above all: nothing goes on behind the user's back
            process.terminate()
            process.wait()
            raise
    tick(time.monotonic() - start)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RunError(f'{Path(tool).name} ended with code {process.returncode}')
    return usage.ru_maxrss / 1024


def gpu_memory(folder):
    """The most memory that MMEngine logged in a training, in MB; 0 without a GPU."""
    return max((row['memory'] for log in folder.glob('*/vis_data') for row in scalars(log.parent) if 'memory' in row), default=0)


def progress(log):
    """The last words in a log that say how far it is, '' where there are none."""
    with open(log, 'rb') as file:
        file.seek(max(0, log.stat().st_size - 4096))
        found = PROGRESS.findall(file.read().decode(errors='replace'))
    return re.sub(r'(\]) .*(eta)', r'\1 \2', found[-1]) if found else ''


def train(run, tell):
    """Trains from the newest checkpoint on. Interrupted attempts count into the seconds."""
    before = run.record.get('seconds', 0)

    def tick(seconds):
        run.note(seconds=before + seconds)
        tell('training')

    run.note(commit=compare_table.commit())
    memory = call('train.py', [run.config, '--work-dir', run.folder, '--resume', '--cfg-options', *run.options], run.log, tick)
    checkpoint = latest_checkpoint(run.folder)
    if checkpoint is None:
        raise RunError('train.py left no checkpoint: the config needs a CheckpointHook')
    run.note(checkpoint=checkpoint, memory=gpu_memory(run.folder) or memory)


def test(run, tell):
    folder = run.folder / 'test'
    call('test.py', [run.config, run.record['checkpoint'], '--work-dir', folder, '--cfg-options', *run.options], run.log,
         lambda _: tell('testing'))
    newest = max(folder.glob('*/*.json'))  # folders and files are named by the time
    run.note(metrics=json.loads(newest.read_text()))


def measure(run, tell):
    out = run.folder / 'cost.json'
    call('analysis_tools/cost.py', [run.config, run.record['checkpoint'], '--out', out, '--cfg-options', *run.options], run.log,
         lambda _: tell('measuring'))
    run.note(cost=json.loads(out.read_text()))


def complete(run, tell):
    """Does what is not yet done of a run.

    Raises:
        RunError: One of its processes failed.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    for result, stage in (('checkpoint', train), ('metrics', test), ('cost', measure)):
        if result not in run.record:
            stage(run, tell)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files, of mmseg or mmpretrain')
    parser.add_argument('--swap', metavar='FOLDER_OR_ID', help='compare each config with its twin on this DiT')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare'), help='default: work_dirs/compare')
    parser.add_argument('--metrics', nargs='+', default=['mIoU', 'accuracy/top1'], metavar='NAME',
                        help='what is compared: the first of these that a config tests (default: mIoU accuracy/top1)')
    parser.add_argument('--out', type=Path, help='JSON file; table and chart go beside it (default: WORK_DIR/compare.json)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='settings to replace in all configs')
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    out = args.out or args.work_dir / 'compare.json'
    try:
        if args.swap:
            check_writable(args.work_dir)
            args.configs = with_twins(args.configs, args.swap, args.work_dir / 'swapped')
        runs, warnings = plan(args)
        check_writable(out.parent, 'the folder', '--out')
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for sentence in warnings:
        print(f'warning: {sentence}', file=sys.stderr)
    failures = []
    done = [run for run in runs if 'cost' in run.record]
    bar = tqdm(total=len(runs), initial=len(done), unit='run', smoothing=0, miniters=0,
               mininterval=1 if sys.stderr.isatty() else 60)
    try:
        for run in runs:
            def tell(stage, run=run):
                bar.set_description_str(f'{run.name}, seed {run.seed}, {stage}', refresh=False)
                bar.set_postfix_str(progress(run.log), refresh=False)
                bar.update(0)
            try:
                complete(run, tell)
            except RunError as error:
                failures.append(f'{run.name}, seed {run.seed}: {error}; see {run.log}')
            try:
                table = compare_table.write_runs(out, runs, args.metrics, warnings, failures)
            except ValueError as error:
                parser.error(str(error))
            bar.update(run not in done)
    except KeyboardInterrupt:
        parser.exit(130, '\ninterrupted: the same command goes on from here\n')
    finally:
        bar.close()
    print(f'\n{table}\nwrote {out}, {out.with_suffix(".md").name} and {out.with_suffix(".png").name}')
    if failures:
        parser.exit(1, ''.join(f'failed: {failure}\n' for failure in failures))


if __name__ == '__main__':
    main()
