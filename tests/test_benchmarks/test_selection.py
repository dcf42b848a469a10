"""Probes find what was planted, what was measured is kept, and rules lose what they say."""
import sys
from functools import partial

import pytest
import runs
import tiny
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from planted import BEST, TIMES, Planted

sys.path.insert(0, str(runs.ROOT / 'benchmarks'))
import halving
import probes
import record
import rules
import selection
import tasks
from tasks import Task

from mmaselect.extract import NoiseProcess, seeded_noise
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


def test_fewer_samples_than_features_give_the_same_probe(monkeypatch):
    monkeypatch.setattr(probes, 'PENALTIES', [0.3])
    features, targets = labelled(30, 1.0, 0)
    wide = torch.cat([features, seeded_noise((30, 34), 1)], 1)
    x, y = wide.double(), targets.double()
    x = (x - x.mean(0)) / x.std(0)
    weights = x.T @ torch.linalg.solve(x @ x.T + 0.3 * 30 * torch.eye(30, dtype=x.dtype), y - y.mean(0))
    torch.testing.assert_close(probes.fit(wide, targets)(wide), (x @ weights + y.mean(0)).float())


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
    return Task('planted', model, TensorImages(images, colour.flatten(1).argmax(1), 50))


def test_probes_and_rules_find_the_planted_timestep():
    task = planted_task()
    measured = selection.Measured(task, 20, labels=[None, 4])
    found = [measured.at(t) for t in TIMES]
    for few in (None, 4):
        rows = list(selection.rows_of('planted', tasks.Setting('', None, labels=few, held_out=True), task, TIMES, found))
        assert len(rows) == len(TIMES) * probes.PARTS
        for seen in rules.seen_of(rows):
            assert seen.timesteps == list(TIMES) and seen.held_out and not seen.dense
            curve = seen.accuracy[:, 0]
            assert curve[TIMES.index(BEST)] == curve.max() > 80
            assert curve[TIMES.index(999)] < 50  # nothing is left of the images there
            for score in ('half_consistency', 'ridge') if few is None else ('half_consistency', ):
                assert rules.regrets(rule(rules.plateau, score, 0, judges=None), seen).tolist() == [0]


def test_probes_are_tested_on_images_that_neither_they_nor_the_choice_have_seen():
    task = planted_task()
    accuracy = [[[None, 1.0, 2.0], [4.0, None, 8.0], [16.0, 32.0, None]]]  # by the part of the fit and that of the test
    found = dict(accuracy={'None': accuracy}, values={'None': {'x': [[0.5], [0.6], [0.7]]}})
    rows = list(selection.rows_of('planted', tasks.Setting('', None), task, [100], [found]))
    # Of seed 0 parts 1 and 2 are tested on, each by the probes of the two other parts, and so on.
    assert [(row['accuracy_1'], row['accuracy_2']) for row in rows] == [
        ((1 + 32) / 2, (2 + 8) / 2), ((4 + 16) / 2, (2 + 8) / 2), ((4 + 16) / 2, (1 + 32) / 2)]
    assert [row['x'] for row in rows] == [0.5, 0.6, 0.7]


def test_few_labels_are_the_first_of_each_class():
    labels = torch.tensor([2, 0, 2, 1, 2, 0, 0, 1])
    assert selection.first_of_each(labels, 2).tolist() == [0, 1, 2, 3, 5, 7]
    task = Task('tiny', tiny.extractor(), TensorImages(tiny.images(24), torch.arange(24) % 2))
    fitted = selection.Measured(task, 8).fitted(2)
    assert [own.tolist() for own in fitted] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_what_scores_have_seen_makes_the_same_values(tmp_path, monkeypatch):
    """A score that comes later is made of what was kept, without a forward pass."""
    task = Task('tiny', tiny.extractor(), TensorImages(tiny.images(48), torch.arange(48) % 2))
    first = selection.Measured(task, 8, folder=tmp_path, keep_rows=True).at(100)
    assert selection.Measured(task, 8, folder=tmp_path).at(100) == first
    monkeypatch.setattr(selection, 'SCORES', dict(selection.SCORES, later=('ridge', 'ridge')))
    monkeypatch.setattr(selection.Measured, 'look', None)
    later = selection.Measured(task, 8, folder=tmp_path).at(100)
    assert later['accuracy'] == first['accuracy']
    assert later['values']['None'].pop('later') == later['values']['None']['ridge'] == first['values']['None']['ridge']
    assert later['values'] == first['values']


def test_masks_have_a_probe_per_cell():
    images = tiny.images(24)
    masks = (torch.arange(24)[:, None, None] // 3 + torch.arange(images.shape[-2])[:, None] // 8) % 3
    masks = masks.expand(-1, -1, images.shape[-1])
    task = Task('tiny', tiny.extractor(), TensorImages(images, masks.where(masks < 2, 255), 10))
    measured = selection.Measured(task, 4)
    assert measured.classes == 2
    found = measured.at(100)
    for rows in found['accuracy']['None']:
        assert [[value is None for value in row] for row in rows] == torch.eye(probes.PARTS).bool().tolist()
        print(rows)
    assert set(found['values']['None']) == set(selection.SCORES)


@pytest.mark.parametrize('clock', [tasks.cosine, tasks.shifted])
def test_another_clock_has_the_same_noise_levels_at_other_timesteps(clock):
    levels = clock(1000)
    assert (levels.diff() < 0).all()
    process = NoiseProcess.from_scheduler(DDPMScheduler())
    found = [tasks.on_clock(process.log_snr(t), clock, 1000) for t in selection.TIMESTEPS]
    assert found == sorted(set(found)) and found != selection.TIMESTEPS
    for t, other in zip(selection.TIMESTEPS[1:], found[1:], strict=True):
        assert levels[other - 1] > process.log_snr(t) > levels[other + 1]


def test_clocks_are_those_of_the_literature():
    cosine = DDPMScheduler(beta_schedule='squaredcos_cap_v2')
    torch.testing.assert_close(tasks.cosine(1000)[:990], torch.logit(cosine.alphas_cumprod.double())[:990], atol=0.02, rtol=0.02)
    flow = NoiseProcess.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3))
    torch.testing.assert_close(tasks.shifted(1000)[:999], 2 * (flow.signal / flow.sigma).log()[:999])


def test_every_setting_is_either_for_rules_or_held_out():
    """At least 14, of both kinds, masks among both."""
    found = list(tasks.TASKS.values())
    assert len(found) >= 14
    for held_out in (False, True):
        assert {own.dense for own in found if own.held_out == held_out} == {False, True}


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


def rule(choose, *args, **options):
    return rules.Rule(partial(choose, *args, **options))


def seen(accuracy, log_snr=(3.0, 0.0, -3.0), timesteps=(0, 100, 300), setting='a', seed=0, held_out=False, dense=False, taps=1,
         **scores):
    """Rows of one setting and seed; tables are lists by timestep, of one value for all taps or one each. Accuracies are of both
    parts, or pairs."""
    def each(value):
        return value if isinstance(value, list) else [value] * taps

    def both(value):
        return value if isinstance(value, tuple) else (value, value)
    return [dict(setting=setting, held_out=int(held_out), dense=int(dense), seed=seed, t=t, log_snr=log_snr[k], block=tap,
                 tap='value' if tap else 'hidden', **dict(zip(rules.TESTS, both(each(accuracy[k])[tap]), strict=True)),
                 **{name: each(values[k])[tap] for name, values in scores.items()})
            for k, t in enumerate(timesteps) for tap in range(taps)]


def test_regret_by_hand():
    own, = rules.seen_of(seen([[50.0, 60], [56, 40], [57, 20]], taps=2, x=[[1, 0], [3, 1], [2, 5]]))
    assert rules.regrets(rule(rules.constant, 90), own).tolist() == [1, 20]  # the nearest is 100
    assert rules.regrets(rule(rules.level, -2.9), own).tolist() == [0, 40]
    assert rules.regrets(rule(rules.plateau, 'x', 0, judges=None), own).tolist() == [1, 40]  # each tap's own
    assert rules.regrets(rule(rules.plateau, 'x', 0, judges='hidden'), own).tolist() == [1, 20]
    either = rule(rules.image_or_dense, partial(rules.constant, 0), partial(rules.constant, 300))
    assert rules.regrets(either, own).tolist() == [7, 0]


def test_fair_regret_by_hand():
    own, = rules.seen_of(seen([(50.0, 50), (60, 52), (56, 58)]))  # means 50, 56, 57
    assert rules.regrets(rule(rules.constant, 100), own).tolist() == [1]
    # The best of the first part on the second, and the other way round.
    assert rules.fair_regrets(rule(rules.constant, 100), own).tolist() == [(52 + 56) / 2 - 56]


def test_votes_weigh_each_score_alike():
    own, = rules.seen_of(seen([0.0, 0, 0], x=[0, 1, 3], y=[0.9, 1.0, 0.0]))
    # Scaled: 0, 1/3, 1 and 0.9, 1, 0.
    assert rules.votes(['x', 'y'], 0, own, judges=None).tolist() == [1]
    assert rules.votes(['x', 'x', 'y'], 0, own, judges=None).tolist() == [2]


def test_the_best_constant_in_hindsight_and_that_of_the_other_settings():
    rows = [row for setting, accuracy, log_snr in (('a', [90.0, 80, 0], (3.0, 0.0, -3.0)), ('b', [60.0, 65, 0], (3.0, 0.0, -3.0)),
                                                   ('c', [10.0, 13, 20], (9.0, 3.0, 0.0)))
            for row in seen(accuracy, log_snr, setting=setting, x=[1, 0, 0])]
    found = {(row['rule'], row['setting']): row['mean'] for row in rules.judged(rows, {})}
    # Lost on a, b and c: t=0 0, 5, 10; t=100 10, 0, 7; t=300 90, 65, 0.
    assert [found['best t in hindsight', name] for name in ('a', 'b', 'c', 'all')] == [0, 5, 10, 5]
    # Without a t=0 loses 7.5 and t=100 3.5; without b 5 and 8.5; without c 2.5 and 5.
    assert [found['best t of the other settings', name] for name in 'abc'] == [10, 5, 10]
    # As noise levels: that of t=0 is c's t=100, that of t=100 c's t=300.
    assert [found['level of t=0', name] for name in 'abc'] == [0, 5, 7]
    assert [found['best level of t in hindsight', name] for name in 'abc'] == [10, 0, 0]


def test_tables_have_the_mean_of_settings_and_the_worst_tap(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rules, 'RULES', {'own': rule(rules.plateau, 'x', 0, judges=None)})
    rows = seen([[50.0, 60], [60, 40], [0, 0]], taps=2, x=[1, 0, 0], setting='made', held_out=False)
    rows += seen([60.0, 50, 0], x=[1, 0, 0], setting='kept', held_out=True, dense=True)
    record.write(tmp_path / 'rows.csv.gz', dict(command='x'), rows)
    rules.main([str(tmp_path / 'rows.csv.gz'), '--summary', str(tmp_path / 'summary.json')])
    lines = capsys.readouterr().out.splitlines()
    # t=0 loses 10 and 0 points on one setting, nothing on the other.
    assert '| t=0 | 2.50 (10.0) | 5.00 (10.0) | 0.00 (0.0) | 0.00 (0.0) | 2.50 | 0 |' in lines
    assert '| own | 2.50 (10.0) | 5.00 (10.0) | 0.00 (0.0) | 0.00 (0.0) | 2.50 | 1/57 |' in lines
    summary = {(row['rule'], row['setting']): row for row in record.read(tmp_path / 'summary.json')[1]}
    assert summary['t=0', 'made']['mean'] == 5 and summary['t=0', 'made']['worst'] == 10
    assert summary['t=0', 'all']['cost_of_trained_probes'] == 0 < summary['own', 'all']['cost_of_trained_probes'] < 1 / 50
    assert summary['t=0', 'kept']['held_out'] is True and summary['t=0', 'all']['held_out'] is None


def test_a_setting_whose_model_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.MODELS, 'flow', tasks.ROOT / 'work_dirs' / 'nothing')
    with pytest.raises(SystemExit, match='no setting can be measured'):
        selection.measure(selection.parse(['--tasks', 'flow', '--work-dir', str(tmp_path)]))


def test_the_sweep_that_halves_is_held_against_the_whole_one(monkeypatch, tmp_path, capsys):
    task = Task('digits', tiny.extractor(), TensorImages(tiny.images(96), torch.arange(96) % 2))
    rows = [dict(setting='digits', held_out=0, dense=0, seed=0, t=t, log_snr=float(-t), block=1, tap='value', accuracy_1=accuracy,
                 accuracy_2=accuracy + 2.0, half_consistency=0.0) for t, accuracy in ((0, 60.0), (500, 80.0), (999, 50.0))]
    seen, = rules.seen_of(rows)
    assert halving.regret(seen, 500) == 0 and halving.regret(seen, 250) == pytest.approx(10)  # between 61 and 81
    record.write(tmp_path / 'rows.csv.gz', {}, rows)
    monkeypatch.setattr(tasks, 'missing', lambda name: None)
    monkeypatch.setattr(tasks, 'build', lambda *_: task)
    words = ['--tasks', 'digits', '--rows', str(tmp_path / 'rows.csv.gz'), '--out', str(tmp_path / 'out.json')]
    halving.main(words)
    row, = record.read(tmp_path / 'out.json')[1]
    assert row['images'] == 32 and row['forwards_halving'] < row['forwards_grid'] == 2 * 20 * 32
    assert row['regret_grid'] == pytest.approx(halving.regret(seen, row['t_grid']))
    halving.main(words)
    assert 'digits: is there' in capsys.readouterr().out and record.read(tmp_path / 'out.json')[1] == [row]
