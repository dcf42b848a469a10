import pytest
import torch
from scoring import value

from mmaselect.extract import seeded_noise
from mmaselect.selection.scores.consistency import principal
from mmaselect.selection.scores.half_consistency import explained


def seen(subject, noise):
    """Maps (N, D, 2, 2) of a subject (N, D) that fills the image and of noise (N, D, 2, 2) in its parts."""
    return subject[..., None, None] + noise


def test_explained_is_that_of_regressions_without_the_image():
    x = seeded_noise((12, 3), 0).double()
    y = x @ seeded_noise((3, 2), 1).double() + seeded_noise((12, 2), 2).double()
    x, y = x - x.mean(0), y - y.mean(0)
    gain, energy = explained(x, y)
    for i in range(12):
        others = [j for j in range(12) if j != i]
        design = torch.cat([x[others], torch.ones(11, 1, dtype=x.dtype)], 1)
        penalty = torch.diag(torch.tensor([1.2, 1.2, 1.2, 0], dtype=x.dtype))  # 0.1 per image of all twelve; not on the mean
        weights = torch.linalg.solve(design.T @ design + penalty, design.T @ y[others])
        error = (y[i] - torch.cat([x[i], x.new_ones(1)]) @ weights).square().sum()
        torch.testing.assert_close(gain[i], y[i].square().sum() - error)
        torch.testing.assert_close(energy[i], y[i].square().sum())


def test_it_is_one_where_all_parts_show_the_subject_alone():
    maps = seen(seeded_noise((400, 4), 0), 0).expand(-1, -1, 2, 2)
    assert value('half_consistency', maps, maps) == pytest.approx(1, abs=0.02)


def test_noise_of_the_image_itself_counts_against_it():
    """The same in both views, another in each part: views alone cannot tell it from content."""
    subject, noise = seeded_noise((600, 4), 0), 2 * seeded_noise((600, 4, 2, 2), 1)
    maps = seen(subject, noise)
    assert value('view_consistency', maps, maps) == pytest.approx(1)
    # A half is the subject and noise of variance 4 / 2 = 2: R^2 of one half from another is (1 / 3)^2.
    assert value('half_consistency', maps, maps) == pytest.approx((5 + 1 / 9) / 6, abs=0.03)


def test_unrelated_views_and_constant_features_are_worth_nothing():
    a, b = seeded_noise((1000, 4, 4, 6), 0), seeded_noise((1000, 4, 4, 6), 1)
    assert value('half_consistency', a, b) == pytest.approx(0, abs=0.05)
    assert value('half_consistency', torch.ones(5, 3, 4, 4), torch.ones(5, 3, 4, 4)) == 0


@pytest.mark.parametrize('shape', [(1, 5), (3, 1), (5, 7)])
def test_grids_of_any_shape(shape):
    maps = seeded_noise((30, 4, *shape), 0)
    assert 0 < value('half_consistency', maps, maps) <= 1


def test_leading_components_come_last_and_are_those_with_most_variance():
    features = seeded_noise((500, 2), 0).repeat_interleave(torch.tensor([6, 1]), 1) + 0.1 * seeded_noise((500, 7), 1)
    found = principal(features, 1)[:, 0]
    assert abs(torch.corrcoef(torch.stack([found, features[:, 0]]))[0, 1]) > 0.99
