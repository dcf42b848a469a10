"""The exhaustive search finds what was planted, and regret is what it says."""
import argparse
import sys

import pytest
import runs
import tiny
import torch
import torch.nn.functional as F
from planted import BEST, TIMES, Planted

sys.path.insert(0, str(runs.ROOT / 'benchmarks'))
import probes
import record
import selection
import tables
from tasks import Task

from mmaselect.extract import seeded_noise
from mmaselect.selection import TensorImages


def labelled(count, noise, seed):
    """Features (count, 6) of three classes, and one-hot targets."""
    classes = torch.arange(count) % 3
    return F.one_hot(classes, 6) + noise * seeded_noise((count, 6), seed), F.one_hot(classes, 3).float()


def test_a_probe_is_the_ridge_regression_of_its_penalty(monkeypatch):
    features, targets = labelled(40, 1.0, 0)
    features[:, 5] = 7  # carries nothing
    monkeypatch.setattr(probes, 'PENALTIES', [0.3])
    probe = probes.fit(features * torch.tensor([1, 10, 1, 0.1, 1, 1]), targets)  # the scale of a channel does not matter
    x = features[:, :5].double()
    x = (x - x.mean(0)) / x.std(0)
    y = targets.double()
    weights = torch.linalg.solve(x.T @ x + 0.3 * 40 * torch.eye(5, dtype=x.dtype), x.T @ (y - y.mean(0)))
    torch.testing.assert_close(probe(features * torch.tensor([1, 10, 1, 0.1, 1, 1])), (x @ weights + y.mean(0)).float())


def test_the_penalty_is_what_leaving_one_out_says(monkeypatch):
    """Thirty samples of 28 features, most of them noise: fitted freely, they say little of others."""
    def features(count, seed):
        found, targets = labelled(count, 0.5, seed)
        return torch.cat([found, seeded_noise((count, 22), seed, 'more')], 1), targets
    train, (others, wanted) = features(30, 0), features(300, 1)

    def outputs(*penalties):
        monkeypatch.setattr(probes, 'PENALTIES', penalties)
        return probes.fit(*train)(others)
    torch.testing.assert_close(outputs(1.0, 1e-6), outputs(1.0))
    right = [(outputs(penalty).argmax(1) == wanted.argmax(1)).sum() for penalty in (1.0, 1e-6)]
    assert right[0] > right[1] + 30


def test_accuracy_of_labels_and_of_masks():
    outputs = F.one_hot(torch.tensor([0, 1, 1, 2]), 3).float()
    assert probes.accuracy(outputs[:, None], (1, 1), torch.tensor([0, 1, 2, 2]), 3) == 75
    # Two rows of pixels, one of them of no class: class 0 has 2 of 3 (one pixel is taken for 1), class 1 has 1 of 2.
    mask = torch.tensor([[[0, 0, 0, 1], [255] * 4]])
    cells = F.one_hot(torch.tensor([[0, 0, 1, 1] * 2]), 3).float()  # (1, 8, 3), on the pixels' own grid
    assert probes.accuracy(cells, (2, 4), mask, 3) == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)


def planted_task():
    colour = seeded_noise((180, 3, 1, 1), 0) * 0.3
    images = (colour + 0.01 * seeded_noise((180, 3, 12, 20), 1)).clamp(-1, 1)
    model = Planted()
    model.family = torch.nn.Linear(1, 1)  # a parameter, as models have them
    model.family.patch_size = 1
    return Task('planted', 'planted', 'colours', model, TensorImages(images, colour.flatten(1).argmax(1), 50))


def test_search_and_choice_find_the_planted_timestep(monkeypatch):
    monkeypatch.setattr(selection, 'randomised', lambda extractor, seed: extractor)  # it has no architecture
    task = planted_task()
    accuracy, *_ = probes.exhaustive(task, list(TIMES))
    assert accuracy.shape == (3, 2, len(TIMES), 1)
    curve = accuracy.mean((0, 1))[:, 0]
    assert curve[TIMES.index(BEST)] == curve.max() > 80
    assert curve[TIMES.index(999)] < 50  # nothing is left of the images there
    found = selection.measure(task, list(TIMES), ['half_consistency', 'ridge', 'auto'], 40, 0)
    assert found['auto'] == found['half_consistency']  # measured once
    for name, own in found.items():
        rows = list(selection.rows_of(task, list(TIMES), accuracy[0], 9.0, 0.0, None, name, 0, **own))
        labelled = name == 'ridge'
        assert [row['chosen_t'] for row in rows] == [BEST] * (2 if labelled else 3) and rows[0]['regret_points'] == 0
        assert (own['images'], own['forwards']) == ((40, 280) if labelled else (20, 280))
        assert labelled == (own['ceiling'] is None)


def test_regret_and_fair_regret_by_hand():
    task = planted_task()
    accuracy = torch.tensor([[50.0, 60, 56], [50, 52, 58]])[..., None]  # per part, of three timesteps; means 50, 56, 57
    row, joint = rows_of(task, [0, 10, 20], accuracy, [[1.0], [3], [2]])
    assert (row['chosen_t'], row['chosen'], row['oracle_t'], row['oracle'], row['regret_points']) == (10, 56, 20, 57, 1)
    assert row['fair_regret_points'] == (56 + 52) / 2 - 56  # the best of the second part on the first, and the other way round
    assert {key: row[key] for key in row if key not in ('tap', 'block')} == {
        key: joint[key] for key in joint if key not in ('tap', 'block')}


def rows_of(task, timesteps, accuracy, values, ceiling=None, seed=0, plateau=0.0, score_taps=None):
    return selection.rows_of(task, timesteps, accuracy, 9.0, plateau, score_taps, 'x', seed, values=values, ceiling=ceiling,
                             images=5, forwards=10, seconds=1.0)


def test_a_search_done_in_shares_is_the_whole_one(tmp_path, monkeypatch):
    task = Task('tiny', 'tiny', 'random', tiny.extractor(), TensorImages(tiny.images(48), torch.arange(48) % 2))
    monkeypatch.setattr(selection, 'setting', lambda *_: task)
    monkeypatch.setattr(selection, 'rows_of', lambda task, timesteps, accuracy, *_, **own: [accuracy])
    args = argparse.Namespace(config=None, checkpoint=None, images=48, masks=0, device='cpu', timesteps=7, bf16=False, passes=8,
                              workers=1, plateau=0.0, score_taps=None, seeds=[0, 2], scores=['ridge'], work_dir=tmp_path)
    parts = [('search', share) for share in range(selection.SHARES)] + [('scores', seed) for seed in args.seeds]
    found = dict(zip(parts, selection.worked(args, [('tiny', *part) for part in parts]), strict=True))
    whole, *_ = probes.exhaustive(task, selection.even(1000, 7))
    torch.testing.assert_close(selection.rows_of_setting(args, 'tiny', found), [whole[0], whole[2]])


def test_a_digest_is_of_what_the_sources_say(tmp_path, monkeypatch):
    monkeypatch.setattr(record, 'ROOT', tmp_path)
    (tmp_path / 'deep').mkdir()
    found = []
    for path, text in (('a.py', '1'), ('a.md', '1'), ('deep/a.py', '1'), ('deep/a.py', '2')):
        (tmp_path / path).write_text(text)
        found.append(record.digest('**/*.py'))
    assert found[0] == found[1] and len(set(found)) == 3


def test_what_was_found_is_kept_while_the_same_is_asked(tmp_path):
    def found(asked, value):
        return record.kept(tmp_path / 'found.json', dict(asked=asked), lambda: value)
    assert [found(1, 'a'), found(1, 'b'), found(2, 'c'), found(2, 'd')] == ['a', 'a', 'c', 'c']


@pytest.mark.parametrize('name', ['rows.csv.gz', 'rows.json'])
def test_rows_are_read_as_they_were_written(tmp_path, name):
    head = dict(command='python "x", y', cores=2)
    rows = [dict(setting='50', score='ridge, 0.1', block=None, taps=['value', 'key'], seed=1, regret=0.25, worst=float('inf')),
            dict(setting='null', score='a "b"\n', block=3, taps=None, seed=0, regret=1.0, worst=-1.5)]
    record.write(tmp_path / name, head, rows)
    assert record.read(tmp_path / name) == (head, rows)
    assert [[type(value) for value in row.values()] for row in record.read(tmp_path / name)[1]] == [
        [type(value) for value in row.values()] for row in rows]


def test_tables_of_the_repository(capsys):
    """The program reads the shipped rows; its figures are those of benchmarks/README.md."""
    tables.main(['--scores', 'half_consistency', 'ridge'])
    printed = capsys.readouterr().out
    page = (runs.ROOT / 'benchmarks' / 'README.md').read_text()
    row = next(line for line in page.splitlines() if line.startswith('| `half_consistency` |'))
    assert row in printed.splitlines()
    with pytest.raises(SystemExit):
        tables.main(['--scores', 'nothing'])


def test_rank_correlation_by_hand():
    assert selection.spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert selection.spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1) and selection.spearman([1, 1], [2, 3]) == 0


def test_the_tables_have_means_over_taps_and_seeds_and_the_worst():
    task = planted_task()
    accuracy = torch.tensor([[[50.0, 60], [60, 40]]] * 2)  # both parts: two timesteps, two taps
    rows = [row for seed, best in ((0, [1, 1]), (1, [0, 1]))
            for row in rows_of(task_of_two_taps(task), [0, 10], accuracy, [[1.0 - best[0], 1.0 - best[1]], best], seed=seed)]
    lines = tables.report(rows).split('\n')
    # Regrets: 0 and 20 with the first seed, 10 and 20 with the second.
    assert '| `x` | 12.50 (20.0) | 12.50 (20.0) |' in lines
    assert '| oracle timesteps | 0 to 10 | 0 to 10 |' in lines
    assert '| best accuracy or mIoU | 60.0 | 60.0 |' in lines


def test_named_taps_choose_the_timestep_of_all():
    accuracy = torch.tensor([[[50.0, 60], [60, 40]]] * 2)  # both parts: two timesteps, two taps
    rows = list(rows_of(task_of_two_taps(planted_task()), [0, 10], accuracy, [[0.2, 0.9], [0.3, 0.1]], score_taps=['hidden']))
    assert [row['chosen_t'] for row in rows] == [0, 0, 0]  # the first tap's own choice is 10
    assert [row['regret_points'] for row in rows] == [10, 0, 0] and all(row['score_taps'] == ['hidden'] for row in rows)


def test_taps_that_are_not_named_have_no_say():
    task = planted_task()
    task.extractor.taps = ((0, 'query'), (0, 'value'))
    rows = list(rows_of(task, [0, 10], torch.zeros(2, 2, 2), [[0.2, 0.6], [0.9, 0.5]], score_taps=['value']))
    assert [row['chosen_t'] for row in rows] == [0, 0, 10]  # the mean of both would choose 10; the last is the joint choice


def test_features_to_choose_by_have_to_be_read(monkeypatch):
    monkeypatch.setattr(selection, 'setting', lambda *_: planted_task())
    args = argparse.Namespace(config='mine.py', checkpoint=None, images=180, masks=0, device='cpu',
                              score_taps=['value', 'hidden'])
    with pytest.raises(SystemExit, match='mine reads no value'):
        selection.work(args, 'mine', 'search', 0)


def task_of_two_taps(task):
    task.extractor.taps = ((0, 'hidden'), (1, 'hidden'))
    return task


def test_the_joint_choice_above_random_weights_leaves_out_what_a_tap_always_has():
    task = task_of_two_taps(planted_task())
    accuracy = torch.tensor([[[50.0, 60], [55, 70]]] * 2)  # two timesteps, two taps
    values = [[0.9, 0.2], [0.8, 0.5]]
    rows = list(rows_of(task, [0, 10], accuracy, values, [0.8, 0.1]))
    assert [row['tap'] for row in rows[2:]] == ['joint: hidden of block 0', 'above random: hidden of block 1']
    assert [row['chosen'] for row in rows[2:]] == [50, 70]
    task.name = 'masks'  # where 'auto' has labels, and nothing to be above
    rows += rows_of(task, [0, 10], accuracy, values)
    lines = tables.report(rows).split('\n')
    assert lines.count('| `x` | 20.00 (20.0) | 20.00 (20.0) | 20.00 (20.0) |') == 1
    assert lines.count('| `x` | 0.00 (0.0) |  | 0.00 (0.0) |') == 1
