import math

import pytest
import torch
from scoring import value, wave

from mmaselect.extract import seeded_noise


@pytest.mark.parametrize('fy, fx, high', [(0, 1, 0), (1, 0, 0), (4, 0, 1), (0, 4, 1), (3, 3, 1), (2, 0, 0)])
def test_hfr_of_a_single_frequency_is_zero_or_one(fy, fx, high):
    """8 cells: Nyquist is 4 cycles, the default cutoff of half of it is 2."""
    assert value('hfr', wave(8, 8, fy, fx)) == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize('fy, fx, radial, square', [(2, 2, 1, 0), (3, 0, 1, 1), (3, 1, 1, 1), (1, 2, 1, 0), (1, 1, 0, 0)])
@pytest.mark.parametrize('name', ['hfr', 'hfr_coherent'])
def test_a_square_band_goes_by_the_larger_component(name, fy, fx, radial, square):
    feature = torch.cat([wave(8, 8, fy, fx), -wave(8, 8, fy, fx)])
    for band, high in (('radial', radial), ('square', square)):
        score = dict(type=name, cutoff=0.5, band=band)
        assert value(score, feature, feature) == pytest.approx(high, abs=1e-6)


def test_hfr_by_hand():
    """A mean of 2 (energy 4 N), a low wave (N / 2), a high wave of amplitude 3 (9 N / 2): 4.5 / 9, and 4.5 / 5 without DC."""
    feature = 2 + wave(8, 8, 0, 1) + 3 * wave(8, 8, 3, 0)
    assert value('hfr', feature) == pytest.approx(4.5 / 9, rel=1e-5)
    assert value(dict(type='hfr', dc=False), feature) == pytest.approx(4.5 / 5, rel=1e-5)
    assert value(dict(type='hfr', cutoff=0.2), feature) == pytest.approx(5 / 9, rel=1e-5)


def test_hfr_of_magnitudes_by_hand():
    """The same: the mean is one bin of 2, each wave two bins of half its amplitude: 2, 1 and 3."""
    feature = 2 + wave(8, 8, 0, 1) + 3 * wave(8, 8, 3, 0)
    assert value(dict(type='hfr', magnitude=True), feature) == pytest.approx(3 / 6, rel=1e-5)
    assert value(dict(type='hfr', magnitude=True, dc=False), feature) == pytest.approx(3 / 4, rel=1e-5)


@pytest.mark.parametrize('height, width', [(1, 8), (8, 1), (5, 7), (4, 16)])
@pytest.mark.parametrize('name', ['hfr', 'hfr_coherent'])
def test_the_band_is_in_nyquist_units_on_any_grid(name, height, width):
    feature = wave(height, width, 0, width // 2) if width > 1 else wave(height, width, height // 2, 0)
    feature = torch.cat([feature, -feature])
    assert value(name, feature, feature) == pytest.approx(1, abs=1e-6)


def test_hfr_of_white_noise_is_the_area_of_the_band():
    """Why plain HFR rewards noise: white noise has nearly all of its energy above a low cutoff."""
    share = value('hfr', seeded_noise((64, 8, 32, 32), 0))
    assert share == pytest.approx(1 - math.pi * 0.25**2 / 1, abs=0.02)  # 1 - pi (Nyquist / 2)^2 in a square of side 2 Nyquist


def test_coherent_hfr_by_hand():
    """Two images that differ by their sign: a low wave (energy N / 2) and a high one of amplitude 3 (9 N / 2)."""
    feature = wave(8, 8, 0, 1) + 3 * wave(8, 8, 3, 0)
    feature = torch.cat([feature, -feature])
    score = dict(type='hfr_coherent', cutoff=0.5)
    assert value(score, feature, feature) == pytest.approx(9 / 10, rel=1e-5)
    assert value(score, feature, -feature) == pytest.approx(-9 / 10, rel=1e-5)


@pytest.mark.parametrize('noise', [0.5, 2.0])
def test_coherent_hfr_is_the_share_of_content(noise):
    """Content of variance 1 and noise of variance v, both in the high band: 1 / (1 + v)."""
    content = seeded_noise((4000, 2, 1, 1), 0)
    views = [(content + math.sqrt(noise) * seeded_noise((4000, 2, 1, 1), k)) * wave(5, 8, 0, 3) for k in (1, 2)]
    assert value('hfr_coherent', *views) == pytest.approx(1 / (1 + noise), abs=0.02)


def test_coherent_hfr_of_independent_draws_is_zero():
    """Where plain HFR is high."""
    views = [seeded_noise((64, 8, 16, 16), k) for k in (1, 2)]
    assert value('hfr_coherent', *views) == pytest.approx(0, abs=0.01)


def test_coherent_hfr_removes_what_all_images_share():
    content = seeded_noise((10, 3, 6, 7), 0)
    views = [content + seeded_noise(content.shape, k) for k in (1, 2)]
    shared = 5 * seeded_noise((1, 3, 6, 7), 3)
    assert value('hfr_coherent', *(v + shared for v in views)) == pytest.approx(value('hfr_coherent', *views), rel=1e-4)
    alike = shared.expand(10, -1, -1, -1)
    assert value('hfr_coherent', alike, alike) == value('hfr_coherent', shared, shared) == 0
