"""Swaps the backbone of every config that the toolboxes bring for a tiny DiT, and trains and predicts once with each.

    python benchmarks/zoo.py                                 # all, 1220 of them
    python benchmarks/zoo.py --toolbox mmseg --sample 60

Each is swapped as ``mmaselect.openmm.swap`` does it, checked to be what an inheriting config can say, built, trained for one step
and asked for one prediction, on random images. Prints a table per head and the reasons of refusal. Rows go to results/zoo.csv.gz:
toolbox, stack, config, model, head and outcome, 'ok', 'refused: why' or 'failed: what'. The same command goes on where it was
interrupted; rows of an earlier state of the code are made anew with --anew.
"""
import argparse
import collections
import copy
import csv
import gzip
import importlib.metadata
import io
import random
import time
import warnings
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from tqdm import tqdm

from mmaselect.files import atomic
from mmaselect.openmm import swap
from mmaselect.openmm.configs import heads, type_name
from mmaselect.openmm.swap import TOOLBOXES, SwapError, inherit

OUT = Path(__file__).parent / 'results' / 'zoo.csv.gz'
COLUMNS = ('toolbox', 'stack', 'config', 'model', 'head', 'outcome')
# 16 pixels per token, as Meta's DiTs have, so that levels get the scales that they would get there.
ARCH = dict(
    transformer=dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=5, sample_size=8,
                     patch_size=2, num_embeds_ada_norm=5, norm_type='ada_norm_zero'),
    vae=dict(block_out_channels=(4,) * 4, down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4,
             layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=64))
TRIED = set()  # swapped models that train: configs that differ in backbone, data or schedule alone have the same one
SIZES = {'LRASPPHead': (400, 416)}  # its pooling has windows of 49 cells; all others get 32x64 pixels
BATCH = 2


def stack():
    """'onedl' or 'stock', which provide the same modules."""
    try:
        importlib.metadata.version('onedl-mmengine')
    except importlib.metadata.PackageNotFoundError:
        return 'stock'
    return 'onedl'


def segmentation_batch(cfg, size):
    from mmseg.structures import SegDataSample
    classes = [head['num_classes'] for _, head in heads(cfg.model) if head.get('num_classes')]
    samples = []
    for _ in range(BATCH):
        shapes = dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=[0] * 4)
        samples.append(SegDataSample(metainfo=shapes))
        samples[-1].gt_sem_seg = PixelData(data=torch.randint(0, min(classes), (1, *size)))
    return dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(BATCH)], data_samples=samples)


def classification_batch(cfg, size):
    from mmpretrain.structures import DataSample
    several = type_name(cfg.model.head).startswith(('MultiLabel', 'CSRA'))
    about = dict(img_shape=size, num_classes=cfg.model.head.num_classes)
    samples = [DataSample(metainfo=about).set_gt_label([k] if several else k) for k in range(BATCH)]
    return dict(inputs=torch.randint(0, 256, (BATCH, 3, *size), dtype=torch.uint8), data_samples=samples)


def prepared(cfg, size):
    """The config of the model, as the Runner would complete it, with images of ``size`` in place of its crops."""
    model = copy.deepcopy(cfg.model)
    model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.update(size=size, test_cfg=None)
    return model


def step(cfg):
    """Builds the model of a swapped config, trains it for a step and predicts.

    Raises:
        AssertionError: The loss is not finite, or a weight of the neck gets no gradient, which DDP would refuse.
    """
    size = next((SIZES[type_name(head)] for _, head in heads(cfg.model) if type_name(head) in SIZES), (32, 64))
    batch = (segmentation_batch if cfg.default_scope == 'mmseg' else classification_batch)(cfg, size)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(prepared(cfg, size))).train()
    loss, _ = model.parse_losses(model(**model.data_preprocessor(copy.deepcopy(batch), True), mode='loss'))
    loss.backward()
    assert torch.isfinite(loss), f'the loss is {loss.item()}'
    idle = [name for name, value in model.neck.named_parameters() if value.requires_grad and value.grad is None]
    assert not idle, f'no gradient at neck.{idle[0]}'
    with torch.no_grad():
        found = model.eval()(**model.data_preprocessor(batch, False), mode='predict')
    assert len(found) == BATCH, f'{len(found)} predictions of {BATCH} images'


def outcome(name):
    """Model, head and outcome of a config."""
    model, head = '', ''
    try:
        try:
            cfg = Config.fromfile(inherit.find(name))
            model = type_name(cfg.model)
        except Exception as error:  # the config's own fault
            return model, head, f'refused: MMEngine does not load the config: {line(error)}'
        if model in TOOLBOXES:
            head = '+'.join(type_name(one) for place, one in heads(cfg.model) if place.startswith(('decode_head', 'head')))
        new = swap(cfg, backbone=dict(arch=ARCH, timestep=50))
        inherit.changes(cfg, new)
        key = repr((cfg.default_scope, new.model, new.get('data_preprocessor')))
        if key not in TRIED:
            step(new)
            TRIED.add(key)
    except SwapError as error:
        return model, head, f'refused: {line(error)}'
    except Exception as error:  # the very thing that is looked for
        return model, head, f'failed: {type(error).__name__}: {line(error)}'
    return model, head, 'ok'


def line(error):
    return ' '.join(str(error).split()).partition(', the current sys.path')[0][:160]  # nothing of this machine


def read(path):
    if not path.is_file():
        return []
    with gzip.open(path, 'rt', newline='') as file:
        return list(csv.DictReader(file))


def write(path, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: [row[key] for key in ('stack', 'toolbox', 'config')]))
    with atomic(path) as part:
        part.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def tables(rows):
    """Lines: per toolbox how many of the models that can be swapped, per head what came out, and the reasons of refusal."""
    for toolbox in inherit.ZOOS:
        some = [row for row in rows if row['toolbox'] == toolbox]
        ours = [row for row in some if row['model'] in TOOLBOXES]
        if not some:
            continue
        good = sum(row['outcome'] == 'ok' for row in ours)
        missing = sum('not installed' in row['outcome'] or 'compiled operator' in row['outcome'] for row in ours)
        kinds = ' or '.join(kind for kind, its in TOOLBOXES.items() if its == toolbox)
        yield (f'{toolbox}: {len(some)} configs, {len(ours)} of {kinds}; of the {len(ours) - missing} whose operators are '
               f'installed {good} train and predict '
               f'({100 * good / max(1, len(ours) - missing):.1f} %)')
        yield f'| {"head":44} |   ok | refused | failed |'
        yield f'|{"-" * 46}|-----:|--------:|-------:|'
        kinds = collections.defaultdict(collections.Counter)
        for row in ours:
            kinds[row['head']][row['outcome'].partition(':')[0]] += 1
        for head, counts in sorted(kinds.items(), key=lambda item: -sum(item[1].values())):
            yield f'| {head:44} | {counts["ok"]:4} | {counts["refused"]:7} | {counts["failed"]:6} |'
        reasons = collections.Counter(row['outcome'] for row in some if row['outcome'] != 'ok')
        yield from (f'{count:5} {reason}' for reason, count in reasons.most_common())
        yield ''


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--toolbox', choices=inherit.ZOOS, help='default: both')
    parser.add_argument('--sample', type=int, metavar='N', help='so many of each toolbox, the same ones every time')
    parser.add_argument('--seconds', type=float, default=float('inf'), help='stop after so long; the same command goes on')
    parser.add_argument('--anew', action='store_true', help='forget earlier rows of this stack')
    parser.add_argument('--out', type=Path, default=OUT, help=f'default: benchmarks/results/{OUT.name}')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')  # of the toolboxes, many per config
    names = []
    for toolbox in [args.toolbox] if args.toolbox else inherit.ZOOS:
        root = inherit.zoo(toolbox)
        found = sorted(f'{toolbox}::{path.relative_to(root)}' for path in root.rglob('*.py') if '_base_' not in path.parts)
        random.Random(0).shuffle(found)  # whatever is done so far is a fair sample
        names += found[:args.sample]
    rows = [row for row in read(args.out) if not (args.anew and row['stack'] == stack())]
    done = {(row['stack'], f'{row["toolbox"]}::{row["config"]}') for row in rows}
    start, todo = time.monotonic(), [name for name in names if (stack(), name) not in done]
    for k, name in enumerate(tqdm(todo, unit='config', mininterval=5)):
        if time.monotonic() - start > args.seconds:
            break
        torch.manual_seed(0)
        toolbox, _, config = name.partition('::')
        rows.append(dict(zip(COLUMNS, (toolbox, stack(), config, *outcome(name)), strict=True)))
        if k % 50 == 49:
            write(args.out, rows)
    write(args.out, rows)
    wanted = set(names)
    print('\n'.join(tables([row for row in rows if row['stack'] == stack() and f'{row["toolbox"]}::{row["config"]}' in wanted])))


if __name__ == '__main__':
    main()
