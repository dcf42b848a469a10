"""tools/compare_labels.py and its heads: against scikit-learn, by hand, and end to end on tiny models and data."""
import importlib
import json
from pathlib import Path

import by_hand
import pytest
import runs
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from mmaselect.openmm import checkpoints
from mmaselect.selection import SelectionResult

TOOLS = runs.ROOT / 'tools'
CLS, SEG = 'aselect_cifar10', 'aselect_camvid'


@pytest.fixture
def heads(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module('compare_heads')


def blobs(count, classes=3, channels=8, spread=1.0):
    """Features (N, D) around a centre per class, and the classes in turn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, channels, generator=generator)
    return centres[labels] + spread * torch.randn(count, channels, generator=generator), labels


def test_logistic_regression_is_scikit_learns(heads):
    x, labels = blobs(90)
    weights = heads.logistic(x, F.one_hot(labels)[:, None].float(), 0.1)[:, 0]
    theirs = LogisticRegression(C=1 / (0.1 * len(x)), tol=1e-8, max_iter=1000).fit(x.numpy(), labels.numpy())
    own = weights[:-1] - weights[:-1].mean(1, keepdim=True)  # what all classes share changes nothing
    torch.testing.assert_close(own, torch.from_numpy(theirs.coef_.T).float(), atol=1e-3, rtol=0)


def test_few_samples_of_many_channels_give_what_all_channels_would(heads, monkeypatch):
    """The basis that samples span changes nothing."""
    monkeypatch.setattr(heads, 'PENALTIES', (0.1, ))
    x, labels = blobs(30, channels=50)
    mean, scale = heads.standardise(x)
    targets = F.one_hot(labels)[:, None].float()
    expected = heads.predict((x - mean) * scale, heads.logistic((x - mean) * scale, targets, 0.1))
    torch.testing.assert_close(heads.fit(x, targets, torch.arange(30))(x), expected, atol=1e-2, rtol=0)


def test_of_many_cells_a_part_chooses_the_penalty_and_the_head_sees_more(heads, monkeypatch):
    sizes, logistic = [], heads.logistic
    monkeypatch.setattr(heads, 'FEW', 50)
    monkeypatch.setattr(heads, 'MOST', 200)
    monkeypatch.setattr(heads, 'CROSS', 0)
    monkeypatch.setattr(heads, 'logistic', lambda x, *rest: sizes.append(len(x)) or logistic(x, *rest))
    x, labels = blobs(300, spread=0.1)
    head = heads.fit(x, F.one_hot(labels)[:, None].float(), torch.arange(300) // 3)
    assert set(sizes[:-1]) == {sizes[0]} and 30 < sizes[0] < 50 and sizes[-1] == 200
    assert (head(x)[:, 0].argmax(1) == labels).all()


def test_accuracy(heads):
    x, labels = blobs(120, spread=0.1)
    assert heads.classify(x[:60], labels[:60], x[60:], labels[60:], 3) == 100
    wrong = labels[60:].clone()
    wrong[:15] = (wrong[:15] + 1) % 3
    assert heads.classify(x[:60], labels[:60], x[60:], wrong, 3) == pytest.approx(75)


@pytest.mark.parametrize('detail', [1, 2])
def test_mean_iou_of_cells(detail, heads):
    """Cells whose features name the classes of their parts: 4x6 cells of 4x4 pixels; and what is ignored does not count."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randint(0, 3, (6, 4 * detail, 6 * detail), generator=generator)
    maps = F.pixel_unshuffle(F.one_hot(parts, 3).permute(0, 3, 1, 2).float(), detail)  # (6, 3 * parts, 4, 6)
    masks = F.interpolate(parts[:, None].float(), (16, 24), mode='nearest')[:, 0].byte()
    assert heads.segment(maps, masks, maps, parts.byte(), 3, detail) == 100
    ignored = masks.clone()
    ignored[:, :8] = 255
    assert 0 < heads.segment(maps, ignored, maps, ignored, 3, detail) <= 100


def compare(monkeypatch, name, data, folder, *arguments):
    """Runs the tool on the tiny version of a config, and gives what it wrote."""
    monkeypatch.syspath_prepend(str(TOOLS))
    options = {key: value for key, value in runs.options(name, data).items() if 'indices' not in key}
    runs.run_here(TOOLS / 'compare_labels.py', runs.CONFIGS[name], *arguments, '--work-dir', folder, '--batch-size', 3,
                  *runs.words(options))
    return json.loads((folder / 'compare.json').read_text())


def test_classification(data, tmp_path, monkeypatch):
    arguments = ['--labels', 4, 'all', '--seeds', 0, 1, '--timesteps', 40, 700, '--pixels']
    found = compare(monkeypatch, CLS, data, tmp_path, *arguments)
    rows = {(row['labels'], row['method']): row for row in found['rows']}
    few = {method: row for (labels, method), row in rows.items() if labels == 4}
    chosen = rows[4, 'dit_aselect_cifar10']['timestep']
    result, = map(SelectionResult.load, tmp_path.rglob('timestep_selection.json'))
    assert [c.timestep for c in result.candidates] == [40, 150, 600] and chosen == [by_hand.choice(result)]
    fixed = [f'dit_aselect_cifar10, t = {t}' for t in (40, 700) if [t] != chosen]
    best = f'dit_aselect_cifar10, best of {len(fixed) + 1} timesteps in hindsight'
    assert set(few) == {'dit_aselect_cifar10', *fixed, best, 'raw pixels, logistic regression', 'raw pixels, RBF SVM'}
    assert all(row['seeds'] == [0, 1] and len(row['values']) == 2 and row['data'] == 'cifar10' for row in few.values())
    assert all(row['seeds'] == [0] and row['std'] is None for (labels, _), row in rows.items() if labels == 'all')
    assert few[best]['mean'] == max(few[name]['mean'] for name in ('dit_aselect_cifar10', *fixed))
    assert few['dit_aselect_cifar10']['trained'] == 10 * (runs.WIDTH * runs.GRID**2 + 1)
    # Again: nothing is computed, and the same is written.
    monkeypatch.setattr(torch.nn.Module, '__call__', None)
    again = compare(monkeypatch, CLS, data, tmp_path, *arguments)
    assert again['rows'] == found['rows']


def test_segmentation_beside_rows_of_other_data(data, tmp_path, monkeypatch, heads):
    found_by, segment = [], heads.segment
    monkeypatch.setattr(heads, 'segment', lambda *args: found_by.append(segment(*args)) or found_by[-1])
    other = dict(data='elsewhere', labels=3, method='m', metric='mIoU', mean=1.0, std=None, seeds=[0], values=[1.0],
                 timestep=None, trained=1, minutes=0.0, config=None)
    old = dict(other, data='camvid', method='before')
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / 'compare.json').write_text(json.dumps(dict(rows=[other, old])))
    found = compare(monkeypatch, SEG, data, tmp_path, '--labels', 2, '--seeds', 0, 1, 2, '--timesteps', 40)
    assert other in found['rows'] and old not in found['rows']
    ours = [row for row in found['rows'] if row['data'] == 'camvid']
    assert {row['metric'] for row in ours} == {'mIoU'}
    single = [row for row in ours if 'hindsight' not in row['method']]
    assert sorted(value for row in single for value in row['values']) == sorted(found_by) and len(found_by) == 3 * len(single)
    assert all(row['mean'] == pytest.approx(sum(row['values']) / 3) for row in ours)
    assert all(row['seeds'] == [0, 1, 2] for row in ours) and '| camvid ' in (tmp_path / 'compare.md').read_text()


def test_a_backbone_from_nothing_is_trained_on_the_sample_of_each_seed(data, tmp_path, monkeypatch):
    """tools/train.py and tools/test.py only pretend; what they are told is what counts."""
    monkeypatch.syspath_prepend(str(TOOLS))
    told = []

    def call(tool, arguments, log, tick):
        words = [str(word) for word in arguments]
        told.append((tool, *(word.partition('=')[2] for word in words if '.indices=' in word)))
        if tool == 'test.py':
            folder = Path(words[words.index('--work-dir') + 1], 'now')
            folder.mkdir(parents=True)  # another folder for each
            (folder / 'metrics.json').write_text(json.dumps({'accuracy/top1': 10.0 * len(told)}))
        return 0.0
    monkeypatch.setattr(importlib.import_module('compare'), 'call', call)
    monkeypatch.setattr(checkpoints, 'latest_checkpoint', lambda folder: 'x.pth')
    config = runs.ROOT / 'configs' / 'baselines' / 'resnet18_cifar10_few.py'
    roots = [f'{split}_dataloader.dataset.data_root={data / "cifar10"}' for split in ('train', 'val', 'test')]
    runs.run_here(TOOLS / 'compare_labels.py', config, '--labels', 4, 'all', '--seeds', 0, 1, '--work-dir', tmp_path,
                  '--cfg-options', *roots)
    assert told == [(tool, places) for places in ('[0,1,2,3]', '[4,5,6,7]', 'None') for tool in ('train.py', 'test.py')]
    few, whole = json.loads((tmp_path / 'compare.json').read_text())['rows']
    assert (few['values'], few['timestep'], few['labels']) == ([20.0, 40.0], None, 4)
    assert (whole['values'], whole['labels']) == ([60.0], 'all') and few['trained'] > 11e6
    del told[:]
    for more in ((), ('optim_wrapper.optimizer.lr=0.5',), ('optim_wrapper.optimizer.lr=0.5',)):  # the last knows the result
        runs.run_here(TOOLS / 'compare_labels.py', config, '--labels', 4, '--seeds', 0, '--test-images', 3,
                      '--work-dir', tmp_path, '--cfg-options', *roots, *more)
    assert told == 2 * [(tool, '[0,1,2,3]', '3') for tool in ('train.py', 'test.py')]


@pytest.mark.parametrize('arguments, message', [
    (['--labels', 'few'], "--labels few: numbers of images, or 'all'"),
    ([runs.CONFIGS[SEG]], 'the configs are not on the same data')])
def test_what_cannot_be_compared_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    with pytest.raises(SystemExit) as stop:
        runs.run_here(TOOLS / 'compare_labels.py', runs.CONFIGS[CLS], *arguments, '--work-dir', tmp_path)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_samples_of_seeds_are_disjoint(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    tool = importlib.import_module('compare_labels')
    assert [list(tool.sample(3, seed, 9)) for seed in (0, 1, 2)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert tool.seeds_of(4, [0, 1, 2], 9) == [0, 1] and tool.seeds_of(None, [0, 1, 2], 9) == [0]
    with pytest.raises(ValueError, match='would take images 8 to 12 of a training set of 9'):
        tool.sample(4, 2, 9)


def test_the_results_of_this_repository_name_each_row_once():
    """Rows of several runs were put together there, and once a model's under the name of another."""
    rows = json.loads((runs.ROOT / 'benchmarks' / 'results' / 'compare.json').read_text())['rows']
    names = [(row['data'], row['labels'], row['method']) for row in rows]
    assert len(set(names)) == len(names)
    for config in {row['config'] for row in rows if row['config']}:
        # Heads of one config are of one size, for classes are as many however many labels there are.
        assert len({row['trained'] for row in rows if row['config'] == config}) == 1, config
