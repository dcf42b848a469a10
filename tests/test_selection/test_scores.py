import math

import pytest
import torch

from mmaselect.extract import seeded_noise
from mmaselect.selection import scores


def value(score, *maps):
    score = scores.build(score)
    return score.value(score.observe(maps).double(), score.total(maps))


def wave(height, width, fy, fx):
    """One channel with a single spatial frequency, in cycles per map."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing='ij')
    return torch.cos(2 * math.pi * (fy * y + fx * x))[None, None]


@pytest.mark.parametrize('fy, fx, high', [(0, 1, 0), (1, 0, 0), (4, 0, 1), (0, 4, 1), (3, 3, 1), (2, 0, 0)])
def test_hfr_of_a_single_frequency_is_zero_or_one(fy, fx, high):
    """8 cells: Nyquist is 4 cycles, the default cutoff of half of it is 2."""
    assert value('hfr', wave(8, 8, fy, fx)) == pytest.approx(high, abs=1e-6)


def test_hfr_by_hand():
    """A mean of 2 (energy 4 N), a low wave (N / 2), a high wave of amplitude 3 (9 N / 2): 4.5 / 9, and 4.5 / 5 without DC."""
    feature = 2 + wave(8, 8, 0, 1) + 3 * wave(8, 8, 3, 0)
    assert value('hfr', feature) == pytest.approx(4.5 / 9, rel=1e-5)
    assert value(dict(type='hfr', dc=False), feature) == pytest.approx(4.5 / 5, rel=1e-5)
    assert value(dict(type='hfr', cutoff=0.2), feature) == pytest.approx(5 / 9, rel=1e-5)


@pytest.mark.parametrize('height, width', [(1, 8), (8, 1), (5, 7), (4, 16)])
def test_hfr_is_in_nyquist_units_on_any_grid(height, width):
    feature = wave(height, width, 0, width // 2) if width > 1 else wave(height, width, height // 2, 0)
    assert value('hfr', feature) == pytest.approx(1, abs=1e-6)


def test_hfr_of_white_noise_is_the_area_of_the_band():
    """Why plain HFR rewards noise: white noise has nearly all of its energy above a low cutoff."""
    share = value('hfr', seeded_noise((64, 8, 32, 32), 0))
    assert share == pytest.approx(1 - math.pi * 0.25**2 / 1, abs=0.02)  # 1 - pi (Nyquist / 2)^2 in a square of side 2 Nyquist


@pytest.mark.parametrize('score', [
    'hfr', dict(type='hfr', dc=False), 'view_consistency', dict(type='view_consistency', components=None)])
@pytest.mark.parametrize('constant', [0.0, 3.0])
def test_constant_features_score_zero(score, constant):
    feature = torch.full((4, 3, 5, 5), constant)
    assert value(score, *[feature] * scores.build(score).views) == pytest.approx(0, abs=1e-6)


def test_view_consistency_is_one_for_equal_views_and_zero_for_unrelated_ones():
    a, b = seeded_noise((2000, 4, 1, 1), 0), seeded_noise((2000, 4, 1, 1), 1)
    assert value('view_consistency', a, a) == pytest.approx(1)
    assert value('view_consistency', a, b) == pytest.approx(0, abs=0.05)
    assert value('view_consistency', a, -a) == pytest.approx(-1, abs=1e-3)


def test_view_consistency_is_the_intraclass_correlation():
    """Content of variance 1 and noise of variance v: ICC = 1 / (1 + v). Seen through any invertible scaling."""
    content, scale = seeded_noise((5000, 6), 0), torch.tensor([1., 10, 0.1, 3, 5, 0.01])
    views = [(content + math.sqrt(0.5) * seeded_noise((5000, 6), k)) * scale for k in (1, 2)]
    score = dict(type='view_consistency', components=None)
    assert value(score, *[v[..., None, None] for v in views]) == pytest.approx(1 / 1.5, abs=0.02)


def test_principal_components_ignore_what_is_not_leading():
    """Two strong consistent directions spread over many channels, and as many channels of pure noise."""
    mixing = seeded_noise((2, 32), 9)
    content = seeded_noise((3000, 2), 0) @ mixing

    def view(k):
        return torch.cat([content + 0.3 * seeded_noise((3000, 32), k), seeded_noise((3000, 32), 10 + k)], 1)[..., None, None]

    leading = value(dict(type='view_consistency', components=2), view(1), view(2))
    everything = value(dict(type='view_consistency', components=None), view(1), view(2))
    assert leading > 0.95
    assert everything < 0.55


def test_view_consistency_of_one_image_is_refused():
    with pytest.raises(ValueError, match='raise num_images'):
        value('view_consistency', torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize('score, message', [
    ('entropy', "unknown score 'entropy': choose one of auto, "),
    (dict(type='hfr', bands=1), "score 'hfr'.*bands"),
    (dict(type='hfr', band='round'), "band='round': choose 'radial'"),
    (dict(cutoff=0.5), 'unknown score None'),
])
def test_bad_scores_are_refused(score, message):
    with pytest.raises(ValueError, match=message):
        scores.build(score)


def test_describe_and_build_are_inverse():
    score = scores.build(dict(type='hfr', cutoff=0.3))
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
    with pytest.raises(ValueError, match="'energy' is already registered"):
        scores.register('energy')(Energy)
