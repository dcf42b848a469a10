"""Compares backbones at several numbers of labelled images: linear heads on frozen features, all else trained by its config.

    python tools/compare_labels.py configs/dit_aselect_cifar10.py configs/baselines/{resnet18,mae_frozen,dit_random}_cifar10.py \\
        --labels 100 400 4000 --timesteps 0 50 100 261 --pixels

A frozen backbone goes over the images once, and its features are kept in WORK_DIR. On them a logistic regression is trained to
convergence (L-BFGS, its penalty by held-out training images): of the vector that the config's neck pools or, for masks, of each
cell of the map, for parts of which it predicts classes. Where the config has a DiTBackbone without a fixed timestep,
AutoTimestepHook chooses it; --timesteps adds others beside it, and the best of all in hindsight. A backbone that is not frozen is
trained and tested by tools/train.py and tools/test.py. --pixels adds a logistic regression and an RBF SVM of raw pixels.

The labelled images of seed s are those of the training set from s n to (s + 1) n, whose lists are in random order (indices=n in a
config takes those of seed 0); so a set is parted into disjoint samples. Of 'all' there is one.

Results are kept: the same command goes on where it was stopped, and rows of other data stay in the file of --out.
"""
import argparse
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import compare_heads
import compare_table
import numpy as np
import torch
from compare import RunError, call, data_of, load_config, progress, settings_hash
from mmengine.registry import MODELS, init_default_scope
from tqdm import tqdm

from mmaselect.extract.fingerprint import hash_of
from mmaselect.extract.shards import Cache, write
from mmaselect.files import atomic
from mmaselect.openmm import AutoTimestepHook, AutoTimestepNeck, DiTBackbone, checkpoints, launch
from mmaselect.openmm.caches.source import SplitImages, dataset_of
from mmaselect.openmm.modules import find_module

PIXELS = 32  # raw pixels are of images reduced to at most so many along each side
SVM_LABELS = 10_000  # up to which the SVM is trained


@dataclass
class Method:
    """What is one row per number of labels. ``values`` are its results by seed."""
    name: str
    config: str | None
    timestep: list | None = None
    trained: int | None = None
    seconds: float = 0.0
    values: dict = field(default_factory=dict)  # labels -> {seed: result}


class Results:
    """Single results in a file of the work dir, by what they depend on."""

    def __init__(self, path):
        self.path = path
        self.found = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, compute, there=lambda: True, **key):
        """(result, seconds) as ``compute`` gave it now or, where what it wrote is still ``there``, in an earlier call."""
        name = json.dumps(key, sort_keys=True, default=str)
        if name not in self.found or not there():
            start = time.monotonic()
            value = compute()
            self.found[name] = [value, time.monotonic() - start]
            with atomic(self.path) as part:
                part.write_text(json.dumps(self.found, indent=1) + '\n')
        return self.found[name]


def fill(method, wanted, results, compute, **key):
    """The method with its results ``compute(labels, seed)`` of all numbers of labels and their seeds."""
    for count, seeds in wanted.items():
        for seed in seeds:
            value, seconds = results.get(lambda count=count, seed=seed: compute(count, seed), labels=count, seed=seed, **key)
            method.values.setdefault(count, {})[seed] = value
            method.seconds += seconds
            print(f'{method.name}, {count or "all"} labels, seed {seed}: {value:.2f}', flush=True)
    return method


# Samples


def sample(labels, seed, size):
    """Places in the training set of ``labels`` images (None: all) for a seed."""
    if labels is None:
        return range(size)
    if (seed + 1) * labels > size:
        raise ValueError(f'seed {seed} would take images {seed * labels} to {(seed + 1) * labels} of a training set of {size}: '
                         'give fewer seeds or labels')
    return range(seed * labels, (seed + 1) * labels)


def seeds_of(labels, seeds, size):
    """The seeds that have a sample of their own."""
    return [0] if labels is None else [seed for seed in seeds if (seed + 1) * labels <= size]


# Features


def is_frozen(model):
    """Whether nothing before the head is trained."""
    return not any(p.requires_grad for p in model.backbone.parameters())


def whole_set(cfg):
    """The config with all training images, of which this tool takes its own."""
    cfg.train_dataloader.dataset.pop('indices', None)
    return cfg


def write_features(cfg, model, split, places, folder, timesteps, batch_size, made):
    """Writes a cache of these images' features: per timestep a vector, or maps (D, h, w) for masks; with labels or masks."""
    source = SplitImages(cfg, model, split, batch_size)
    backbone, neck = model.backbone, find_module(model, AutoTimestepNeck)
    vector = neck is not None and neck.output == 'vector'
    if timesteps != [None]:
        every = [t for ts in timesteps for t in ts]
        extractor = backbone.extractor if set(every) <= set(backbone.timesteps) else backbone.unfolded()

    def items(part):
        with torch.no_grad():
            for _, images, samples in source.batches([places[k] for k in part]):
                if timesteps == [None]:
                    groups = [backbone(images)]
                else:
                    options = dict(noise=backbone.noise, seed=backbone.seed, draws=backbone.noise_draws)
                    maps = extractor(images, every, **options)
                    groups = [maps[k:k + len(maps) // len(timesteps)] for k in range(0, len(maps), len(maps) // len(timesteps))]
                joined = [torch.cat(group, 1) for group in groups]
                stacked = torch.stack([neck.pool(one) if vector else one for one in joined], 1).half().cpu()
                for own, data in zip(stacked, samples, strict=True):
                    about = data.gt_label if 'gt_label' in data else data.gt_sem_seg.data[0].byte()
                    yield dict(features=own, about=about.cpu().clone())
    settings = dict(kind='probe', places=hashlib.sha256(repr(list(places)).encode()).hexdigest(), timesteps=timesteps, **made,
                    **source.about)
    with tqdm(desc=f'{folder.parent.name}, {split} features', unit=' images', total=len(places)) as bar:
        write(folder, len(places), settings, items, shard=256, advance=bar.update)


def features(args, cfg, model, parts, name, timesteps, made, results):
    """What heads are trained and tested on, from caches that are written where they are not there.

    Args:
        parts (dict[str, Sequence[int]]): Split -> places in its dataset.

    Returns:
        tuple[list, float, str]: Of each split features (N, timesteps, ...) float16 and labels (N,) or masks (N, H, W); the
            seconds that it took; and the name of what they were made from.
    """
    key = hashlib.sha256(repr((made, timesteps, parts)).encode()).hexdigest()[:12]
    folders = {split: args.work_dir / name / f'{split}_{key}' for split in parts}

    def write_all():
        for split, places in parts.items():
            write_features(cfg, model, split, places, folders[split], timesteps, args.batch_size, made)
    _, seconds = results.get(write_all, lambda: all(folder.is_dir() for folder in folders.values()),
                             config=name, key=key, what='features')
    found = []
    for folder in folders.values():
        cache = Cache(folder, 'probe')
        x, about = (torch.stack([cache.read(k, kind) for k in range(len(cache))]) for kind in ('features', 'about'))
        found.append((x, about.flatten() if about.ndim == 2 else about))
    return found, seconds, key


def parts_of(args, cfg):
    """Which places of the training set the seeds take for each number of labels, and the places of both splits.

    Returns:
        tuple[dict, dict, int]: Number of labels -> seeds; split -> places; and the size of the training set.
    """
    size, tested = (len(dataset_of(cfg, split)[0]) for split in ('train', 'test'))
    wanted = {labels: seeds_of(labels, args.seeds, size) for labels in args.labels}
    places = sorted({place for labels, seeds in wanted.items() for seed in seeds for place in sample(labels, seed, size)})
    return wanted, dict(train=places, test=list(range(min(args.test_images or tested, tested)))), size


def classes_of(cfg):
    return (cfg.model.get('head') or cfg.model.decode_head).num_classes


def parameters_of(cfg, width):
    """Trained parameters of a linear head on ``width`` channels."""
    return (width + 1) * classes_of(cfg) * (1 if 'head' in cfg.model else compare_heads.DETAIL**2)


def runner_of(config, options, work_dir):
    cfg = whole_set(load_config(config, options))
    cfg.work_dir = str(work_dir)
    launch.prepare(cfg)
    runner = launch.build_runner(cfg)
    if not isinstance(runner.model.backbone, DiTBackbone):  # whose weights are there already
        runner.model.init_weights()
    return runner


def datasets_of(cfg):
    """What the images depend on."""
    return repr([cfg[f'{split}_dataloader'].dataset for split in ('train', 'test')])


def measure_frozen(args, config, runner, results):
    """The methods of a config with a frozen backbone: its own timestep and the others that are asked for."""
    cfg, model = runner.cfg, runner.model.eval()
    backbone, name = model.backbone, Path(config).stem
    made = dict(model=repr(cfg.model), weights=hash_of(backbone.state_dict()), data=datasets_of(cfg))
    timesteps, methods = [None], []
    if isinstance(backbone, DiTBackbone):
        timesteps = [list(backbone.timesteps)]
        if backbone.chosen is None:
            chosen, _ = results.get(lambda: choose(runner), config=name, what='selection', **made)
            timesteps = [chosen, *([t] for t in args.timesteps if [t] != chosen)] if len(chosen) == 1 else [chosen]
    wanted, parts, size = parts_of(args, cfg)
    ((train, labels), (test, truth)), seconds, key = features(args, cfg, model, parts, name, timesteps, made, results)
    extraction, where = seconds / len(timesteps), {place: k for k, place in enumerate(parts['train'])}
    for number, ts in enumerate(timesteps):
        fixed = number or (ts != [None] and cfg.model.backbone.get('timestep') is not None)
        method = Method(name + (f', t = {"+".join(map(str, ts))}' if fixed else ''), str(config),
                        None if ts == [None] else ts, parameters_of(cfg, train[0, 0].shape[0]), extraction)
        def compute(count, seed, number=number):
            rows = [where[place] for place in sample(count, seed, size)]
            return compare_heads.score(train[rows, number], labels[rows], test[:, number], truth, classes_of(cfg))
        methods.append(fill(method, wanted, results, compute, config=name, key=key, timestep=ts))
    return methods


def choose(runner):
    """The timesteps that the neck's policy chooses."""
    AutoTimestepHook().select(runner)
    return list(runner.model.backbone.timesteps)


def measure_trained(args, config, cfg, results):
    """The method of a config whose backbone is trained, by tools/train.py and tools/test.py."""
    name = Path(config).stem
    method = Method(name, str(config))
    init_default_scope(cfg.default_scope)
    method.trained = sum(p.numel() for p in MODELS.build(cfg.model).parameters() if p.requires_grad)
    size = len(dataset_of(whole_set(cfg), 'train')[0])
    # Tested on the first images, as frozen models are.
    shown = [f'test_dataloader.dataset.indices={args.test_images}'] if args.test_images else []
    made = settings_hash(load_config(config, [*args.cfg_options, *shown]))[:12]

    def compute(count, seed):
        places = count and list(sample(count, seed, size))
        options = [*args.cfg_options, f'randomness.seed={seed}',
                   f'train_dataloader.dataset.indices={places}'.replace(' ', ''), *shown]
        return train_and_test(config, args.work_dir / name / f'{count or "all"}_{seed}_{made}', options)
    wanted = {labels: seeds_of(labels, args.seeds, size) for labels in args.labels}
    return [fill(method, wanted, results, compute, config=name, made=made)]


def train_and_test(config, folder, options):
    """The result of a training, by the first of the usual metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / 'run.log'
    with tqdm(bar_format='{desc}') as bar:
        def tell(_):
            bar.set_description_str(f'{folder.parent.name} {folder.name} {progress(log)}')
        call('train.py', [config, '--work-dir', folder, '--resume', '--cfg-options', *options], log, tell)
        checkpoint = checkpoints.latest_checkpoint(folder)
        call('test.py', [config, checkpoint, '--work-dir', folder / 'test', '--cfg-options', *options], log, tell)
    found = json.loads(max((folder / 'test').glob('*/*.json')).read_text())
    return next(found[key] for key in ('mIoU', 'accuracy/top1') if key in found)


def measure_pixels(args, config, runner, results):
    """Raw pixels of the config's images: a logistic regression and, of not too many, an SVM."""
    cfg, model, data = runner.cfg, runner.model, data_of(runner.cfg)
    model.backbone, model.neck = Pixels(), AutoTimestepNeck(3, output='vector', pool='grid', grid=PIXELS)
    wanted, parts, size = parts_of(args, cfg)
    found, _, key = features(args, cfg, model, parts, f'pixels_{data}', [None], dict(model='pixels', data=datasets_of(cfg)),
                             results)
    (train, labels), (test, truth) = ((x[:, 0].float(), y) for x, y in found)
    where = {place: k for k, place in enumerate(parts['train'])}
    rows = {(count, seed): [where[place] for place in sample(count, seed, size)]
            for count, seeds in wanted.items() for seed in seeds}
    linear = Method('raw pixels, logistic regression', None, trained=parameters_of(cfg, train.shape[1]))
    fill(linear, wanted, results, lambda *which: compare_heads.score(
        train[rows[which]], labels[rows[which]], test, truth, classes_of(cfg)), key=key, kind='linear')
    few = {count: seeds for count, seeds in wanted.items() if (count or size) <= SVM_LABELS}
    kernel = Method('raw pixels, RBF SVM', None)
    fill(kernel, few, results, lambda *which: compare_heads.svm(train[rows[which]], labels[rows[which]], test, truth),
         key=key, kind='svm')
    return [linear, kernel]


class Pixels(torch.nn.Module):
    """A backbone whose features are the pixels."""

    def forward(self, images):
        return (images, )


# The command line


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files on the same data')
    parser.add_argument('--labels', nargs='+', default=['all'], metavar='N', help="labelled images, or 'all' (default: all)")
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='samples of the labelled images (default: 0 1 2)')
    parser.add_argument('--timesteps', type=int, nargs='+', default=[], metavar='T', help='beside the chosen one, for DiTs')
    parser.add_argument('--pixels', action='store_true', help='raw pixels as well (scikit-learn)')
    parser.add_argument('--test-images', type=int, help='test on so many of the test set (default: all)')
    parser.add_argument('--batch-size', type=int, default=64, help='images per forward pass (default: 64)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_labels'), help='default: %(default)s')
    parser.add_argument('--out', type=Path, help='JSON file; the table goes beside it (default: WORK_DIR/compare.json)')
    parser.add_argument('--note', default='', help='a sentence for the file, on data or machine')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='settings to replace in all configs')
    args = parser.parse_args()
    try:
        args.labels = [None if count == 'all' else int(count) for count in args.labels]
    except ValueError:
        parser.error(f"--labels {' '.join(args.labels)}: numbers of images, or 'all'")
    return parser, args


def main():
    parser, args = parse_args()
    out = args.out or args.work_dir / 'compare.json'
    try:
        cfgs = {config: load_config(config, args.cfg_options) for config in args.configs}
        data, *others = {data_of(cfg) for cfg in cfgs.values()}
        if others:
            raise ValueError('the configs are not on the same data: give those of one, and the same --out for the next')
        checkpoints.check_writable(args.work_dir)
        checkpoints.check_writable(out.parent, 'the folder', '--out')
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.manual_seed(0)
    np.random.seed(0)
    metric = 'accuracy' if 'head' in cfgs[args.configs[0]].model else 'mIoU'
    results, methods, failures, table = Results(args.work_dir / 'results.json'), [], [], None
    for config, cfg in cfgs.items():
        try:
            runner = runner_of(config, [*args.cfg_options, *unfolded(cfg)], args.work_dir / Path(config).stem)
            frozen = is_frozen(runner.model)
            if args.pixels and config == args.configs[0] and 'head' in cfg.model:
                other = runner_of(config, [*args.cfg_options, *unfolded(cfg)], args.work_dir / 'pixels')
                methods += measure_pixels(args, config, other, results)
            methods += measure_frozen(args, config, runner, results) if frozen else measure_trained(args, config, cfg, results)
        except RunError as error:
            failures.append(f'{config}: {error}')
            continue
        table = compare_table.write_labels(out, data, metric, methods, args.note)
    if table:
        print(f'\n{table}\nwrote {out} and {out.with_suffix(".md").name}')
    if failures:
        parser.exit(1, ''.join(f'failed: {failure}\n' for failure in failures))


def unfolded(cfg):
    """The option that keeps a DiT whole, so that it can be read at any timestep."""
    return ['model.backbone.fold=False'] if str(cfg.model.backbone.type).endswith('DiTBackbone') else []


if __name__ == '__main__':
    main()
