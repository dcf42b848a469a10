import pytest
import torch
from scoring import cells, value

from mmaselect.extract import seeded_noise


def orthonormal(count, channels, seed=0):
    """Rows (count, channels) of length one that are perpendicular to each other, float64."""
    return torch.linalg.qr(seeded_noise((channels, count), seed).double()).Q.T


def hadamard(size):
    """(size, size), orthogonal, of entries 1 and -1, the first row and column of ones."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1., 1], [1, -1]], dtype=torch.float64), matrix)
    return matrix


@pytest.mark.parametrize('count', [1, 5, 12])
def test_rankme_of_orthonormal_rows_is_their_number(count):
    assert value('rankme', cells(orthonormal(count, 12))) == pytest.approx(count, rel=1e-4)


def test_rankme_by_hand():
    """Singular values 3 and 1: exp of the entropy of (3/4, 1/4), which is 4 / 3^(3/4)."""
    rows = torch.tensor([3., 1])[:, None] * orthonormal(2, 6)
    assert value('rankme', cells(rows)) == pytest.approx(4 / 3**0.75, rel=1e-4)


@pytest.mark.parametrize('alpha', [0.0, 0.5, 1.5])
def test_alpha_req_of_a_power_law_is_minus_its_exponent(alpha):
    """Hadamard vectors leave all channels with a mean of zero and one deviation, so that standardising changes no ratio."""
    eigenvalues = torch.arange(1, 33, dtype=torch.float64) ** -alpha
    features = hadamard(64)[:, 1:33] * eigenvalues.sqrt() @ hadamard(32)
    assert value('alpha_req', cells(features)) == pytest.approx(-alpha, abs=1e-5)


def test_alpha_req_looks_at_the_places_it_was_told():
    eigenvalues = torch.arange(1, 33, dtype=torch.float64) ** -1.0
    eigenvalues[8:] = eigenvalues[8]  # flat from the ninth on
    features = cells(hadamard(64)[:, 1:33] * eigenvalues.sqrt() @ hadamard(32))
    assert value(dict(type='alpha_req', first=1, last=9), features) == pytest.approx(-1, abs=1e-5)
    assert value(dict(type='alpha_req', first=10, last=30), features) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('discriminable', [1, 4, 8])
def test_lidar_counts_the_directions_that_tell_images_apart(discriminable):
    """Eight directions in which images differ; in the others of them the views differ far more."""
    content = seeded_noise((3000, 8), 0)
    noise = torch.tensor([0.01] * discriminable + [10.] * (8 - discriminable))
    views = [cells(content + noise * seeded_noise((3000, 8), k)) for k in (1, 2)]
    assert value('lidar', *views) == pytest.approx(discriminable, rel=0.02)


@pytest.mark.parametrize('constant, rank', [(0.0, 0), (3.0, 1)])
def test_constant_features_have_no_spread_to_count(constant, rank):
    feature = torch.full((4, 3, 5, 5), constant)
    assert value('rankme', feature) == pytest.approx(rank, rel=1e-4)
    assert value('lidar', feature, feature) == 0
    assert value('alpha_req', feature) == 0


def test_one_image_has_no_spread_to_count(recwarn):
    feature = seeded_noise((1, 3, 5, 5), 0)
    assert value('rankme', feature) == pytest.approx(1, rel=1e-4)
    assert value('lidar', feature, feature) == 0
    assert value('alpha_req', feature) == 0
    assert not recwarn.list
