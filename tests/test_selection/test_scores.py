"""What holds for every score; each has its own values in the test file of its module."""
import pytest
import torch
from planted import BEST, TIMES, Planted, colours, swept
from scoring import value

from mmaselect.extract import seeded_noise
from mmaselect.selection import SCORES, TensorImages, scores


@pytest.mark.parametrize('score', [
    'hfr', dict(type='hfr', dc=False), dict(type='hfr', magnitude=True), 'hfr_coherent', 'view_consistency', 'cell_consistency',
    'half_consistency', dict(type='view_consistency', components=None)], ids=str)
@pytest.mark.parametrize('constant', [0.0, 3.0])
def test_constant_features_score_zero(score, constant):
    feature = torch.full((4, 3, 5, 5), constant)
    assert value(score, *[feature] * scores.build(score).views) == pytest.approx(0, abs=1e-6)


# Of three channels; of all other scores from 0 to 1.
RANGES = {'rankme': (1, 3), 'lidar': (1, 3), 'ridge': (-2, 1)}


@pytest.mark.parametrize('name', SCORES)
@pytest.mark.parametrize('height, width', [(1, 1), (1, 7), (6, 1), (5, 7), (4, 16)])
def test_every_score_takes_every_grid(name, height, width):
    maps = [seeded_noise((6, 3, height, width), 0)] * SCORES[name].views
    per_pixel = torch.arange(6 * height * width).view(6, height, width) % 2
    for labels in (torch.arange(6) % 2, per_pixel) if SCORES[name].labelled else (None,):
        result, least, most = value(name, *maps, labels=labels), *RANGES.get(name, (0, 1))
        assert isinstance(result, float) and least <= result <= most + 1e-6
        # Neither the order of the images nor the scale of the features matters.
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        moved = value(name, *[10 * m[order] for m in maps], labels=None if labels is None else labels[order])
        assert moved == pytest.approx(result, abs=1e-4)


@pytest.mark.parametrize('score, message', [
    ('entropy', "unknown score 'entropy': choose one of auto, probe, "),
    (dict(type='hfr', bands=1), "score 'hfr'.*bands"),
    (dict(type='hfr', band='round'), "band='round': choose 'radial'"),
    (dict(type='hfr_coherent', band='round'), "band='round': choose 'radial'"),
    (dict(cutoff=0.5), r"unknown score \{'cutoff': 0.5\}: give a name, or dict\(type=name\)"),
    (None, 'unknown score None'), (5, 'unknown score 5'), (dict(type=5), 'unknown score'),
])
def test_bad_scores_are_refused(score, message):
    with pytest.raises(ValueError, match=message):
        scores.build(score)


def test_auto_needs_no_labels_and_a_probe_wants_enough():
    masks = torch.zeros(2, 2, 2).long()

    def chosen(name, count, labels=None, **options):
        return scores.build(name, TensorImages(torch.zeros(count, 3, 2, 2), labels), **options)
    probe = scores.build(dict(type='ridge', ridge=0.1, measure='accuracy'))
    assert chosen('probe', 2, masks) == chosen('probe', 100, torch.arange(100) % 2) == probe  # of pixels, 50 per class
    images, dense = scores.build('half_consistency'), scores.build('cell_consistency')
    assert chosen('probe', 99, torch.arange(99) % 2) == chosen('probe', 100) == scores.build('probe') == images
    assert chosen('auto', 2, masks) == chosen('auto', 2, task='dense') == chosen('probe', 2, task='dense') == dense
    assert chosen('auto', 100, torch.arange(100) % 2) == chosen('auto', 2) == chosen('auto', 2, masks, task='image') == images


@pytest.mark.parametrize('score', [dict(type='hfr', cutoff=0.3), *SCORES], ids=str)
def test_describe_and_build_are_inverse(score):
    score = scores.build(score)
    assert scores.build(score.describe()) == score
    assert scores.build(score) is score


def test_third_parties_register_their_own(monkeypatch):
    monkeypatch.setattr(scores, 'SCORES', dict(scores.SCORES))

    @scores.register('energy')
    class Energy(scores.Score):
        def observe(self, maps, labels=None):
            return maps[0].square().mean((1, 2, 3))[:, None]

        def value(self, rows, total=None):
            return rows.mean().item()

    assert value('energy', 2 * torch.ones(3, 2, 2, 2)) == 4
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES, score='energy')
    assert (result.timestep, result.interval, result.score) == (BEST, None, dict(type='energy'))
    with pytest.raises(ValueError, match="'energy' is already registered"):
        scores.register('energy')(type('Another', (scores.Score,), {}))


def test_auto_may_be_a_dict_and_takes_no_options():
    assert scores.build(dict(type='auto')) == scores.build('auto') == scores.build('half_consistency')
    with pytest.raises(ValueError, match=r"'auto' takes no options, not \['ridge'\]"):
        scores.build(dict(type='auto', ridge=1))


def test_a_cell_that_registers_a_score_may_run_twice(monkeypatch):
    monkeypatch.setattr(scores, 'SCORES', dict(scores.SCORES))

    def cell():
        @scores.register('of a notebook')
        class OfANotebook(scores.Score):
            pass
        return OfANotebook
    first, second = cell(), cell()
    assert first is not second is scores.SCORES['of a notebook']
    with pytest.raises(ValueError, match="'of a notebook' is already registered"):
        scores.register('of a notebook')(type('Another', (scores.Score,), {}))
