import math

import pytest
import torch
from scoring import cells, value

from mmaselect.extract import seeded_noise


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
    assert value(score, *map(cells, views)) == pytest.approx(1 / 1.5, abs=0.02)


def test_principal_components_ignore_what_is_not_leading():
    """Two strong consistent directions spread over many channels, and as many channels of pure noise."""
    mixing = seeded_noise((2, 32), 9)
    content = seeded_noise((3000, 2), 0) @ mixing

    def view(k):
        return cells(torch.cat([content + 0.3 * seeded_noise((3000, 32), k), seeded_noise((3000, 32), 10 + k)], 1))

    leading = value(dict(type='view_consistency', components=2), view(1), view(2))
    everything = value(dict(type='view_consistency', components=None), view(1), view(2))
    assert leading > 0.95
    assert everything < 0.55


def test_view_consistency_of_one_image_is_refused():
    with pytest.raises(ValueError, match='raise num_images'):
        value('view_consistency', torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2))


def test_cell_consistency_is_the_intraclass_correlation_of_cells():
    """Content of variance 1 in each of 36 cells and noise of variance v: ICC = 1 / (1 + v)."""
    content = seeded_noise((200, 6, 6, 6), 0)
    views = [content + math.sqrt(0.5) * seeded_noise((200, 6, 6, 6), k) for k in (1, 2)]
    score = dict(type='cell_consistency', components=None, cells=36)
    assert value(score, *views) == pytest.approx(1 / 1.5, abs=0.02)
    assert value(score, content, content) == pytest.approx(1)
    assert value(score, content, content.flip(-1)) == pytest.approx(0, abs=0.05)  # the same pooled, at other places


def test_cell_consistency_looks_only_where_every_view_does():
    content = seeded_noise((50, 3, 10, 20), 0)
    other = content.clone()
    other[..., 0] = other[..., -1] = other[..., 0, :] = other[..., -1, :] = 1e3
    assert value('cell_consistency', content, other) == pytest.approx(1)


@pytest.mark.parametrize('images', [500, 40])
def test_components_without_energy_count_for_nothing(images):
    """Features of three directions in 64 channels: the thirteen other components are rounding, whose ratios are noise."""
    mixing, content = seeded_noise((3, 64), 0), seeded_noise((images, 3), 1)
    views = [cells((content + 0.2 * seeded_noise((images, 3), k)) @ mixing) for k in (2, 3)]
    assert value('view_consistency', *views) == pytest.approx(value(dict(type='view_consistency', components=3), *views))
    assert value('view_consistency', *views) > 0.8
