import pytest
import tiny
import torch

from mmaselect.extract.massive import magnitudes, massive_channels


def test_planted_channels_are_found_the_largest_first():
    feature = torch.randn(3, 64, 4, 6, generator=torch.Generator().manual_seed(0))
    feature[:, 9] = -200
    feature[:, 41] += 90
    found = massive_channels(magnitudes(feature))
    assert list(found) == [9, 41]
    ordinary = torch.cat([feature[:, :9], feature[:, 10:41], feature[:, 42:]], 1).abs().mean().item()
    assert found[9] == pytest.approx(200 / ordinary, rel=0.05) and found[41] == pytest.approx(90 / ordinary, rel=0.05)
    assert list(massive_channels(magnitudes(feature), factor=150)) == [9]
    assert massive_channels(magnitudes(feature), factor=1000) == {}


def test_the_factor_is_against_the_median():
    assert massive_channels(torch.tensor([1., 2, 3, 2, 400]).double(), 100) == {4: 200}
    assert massive_channels(torch.tensor([1., 2, 3, 2, 400]).double(), 200) == {}  # it does not exceed it


def test_one_token_does_not_make_a_channel_massive():
    feature = torch.ones(1, 8, 10, 10)
    feature[0, 3, 5, 5] = 1000
    assert magnitudes(feature)[3] == pytest.approx(10.99) and massive_channels(magnitudes(feature)) == {}


def test_ordinary_features_have_none():
    assert massive_channels(magnitudes(tiny.extractor()(tiny.images(), 100)[0])) == {}


@pytest.mark.parametrize('magnitude, factor, message', [
    (torch.ones(4), 0.5, 'factor=0.5'),
    (torch.tensor([0., 0, 0, 1]), 50, 'dead or not finite'),
    (torch.tensor([1., 1, 1, torch.inf]), 50, 'dead or not finite'),
    (torch.tensor([1., 1, 1, torch.nan]), 50, 'dead or not finite'),
])
def test_what_has_no_answer_is_refused(magnitude, factor, message):
    with pytest.raises(ValueError, match=message):
        massive_channels(magnitude, factor)
