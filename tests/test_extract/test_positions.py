"""Sin-cos positions on grids of other sizes than the training's."""
import math

import meta_dit
import pytest
import tiny
import torch

from mmaselect.extract import Extractor
from mmaselect.extract.families.dit import DiT, positions

# Width 8: two frequencies, 1 and 1/100, for each of x and y. The training had a grid of 4 x 4.
ROWS, COLUMNS = {'interpolate': (0, 2), 'extrapolate': (0, 1)}, {
    'interpolate': (0, 2 / 3, 4 / 3, 2, 8 / 3, 10 / 3), 'extrapolate': (0, 1, 2, 3, 4, 5)}


@pytest.mark.parametrize('scale', ROWS)
def test_a_wide_grid_by_hand(scale):
    table = positions(8, (2, 6), 4, scale, 'cpu', torch.float64)[0].unflatten(0, (2, 6))  # (h, w, D)
    for row, y in enumerate(ROWS[scale]):
        for column, x in enumerate(COLUMNS[scale]):
            expected = [math.sin(x), math.sin(x / 100), math.cos(x), math.cos(x / 100),
                        math.sin(y), math.sin(y / 100), math.cos(y), math.cos(y / 100)]
            torch.testing.assert_close(table[row, column].tolist(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('scale', ROWS)
def test_the_trainings_grid_is_metas_table(scale):
    torch.testing.assert_close(positions(16, (4, 4), 4, scale, 'cpu', torch.float32)[0], meta_dit.table(16, 4, 4))


def test_extrapolation_goes_on_from_the_trainings_table():
    table = positions(16, (3, 7), 4, 'extrapolate', 'cpu', torch.float32)[0].unflatten(0, (3, 7))  # (h, w, D)
    torch.testing.assert_close(table[:, :4].flatten(0, 1), meta_dit.table(16, 4, 4)[:12])
    torch.testing.assert_close(table[:, 4:].flatten(0, 1), meta_dit.table(16, 3, 7).unflatten(0, (3, 7))[:, 4:].flatten(0, 1))


@pytest.mark.parametrize('height, width', [(8, 8), (16, 16), (12, 6), (4, 16)])
def test_interpolation_is_diffusers_own(height, width):
    extractor = tiny.extractor()
    latent = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
    ours, = extractor.family.overrides().values()
    torch.testing.assert_close(ours(latent), extractor.family.model.pos_embed(latent), rtol=0, atol=1e-5)


def test_the_option_changes_other_grids_alone():
    def features(height, width, pos_scale):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Extractor.from_arch(tiny.ARCH, pos_scale=pos_scale).eval()(tiny.images(1, height, width), 50)[0]

    assert torch.equal(features(16, 16, 'extrapolate'), features(16, 16, None))
    assert torch.equal(features(16, 64, 'interpolate'), features(16, 64, None))
    wide = features(16, 64, 'extrapolate')  # 1:4
    assert wide.shape == (1, 16, 4, 16) and not torch.allclose(wide, features(16, 64, None), atol=1e-3)


def test_unknown_positions_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"pos_scale of DiTTransformer2DModel is None or one of .*, not 'stretch'"):
        Extractor.from_arch(tiny.ARCH, pos_scale='stretch')
    monkeypatch.delattr(DiT, 'pos_scales')  # a family that has no choice
    with pytest.raises(ValueError, match="is None or one of .*, not 'extrapolate'"):
        Extractor.from_arch(tiny.ARCH, pos_scale='extrapolate')
