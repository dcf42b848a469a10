import pytest
import torch
import torch.nn.functional as F
from scoring import cells, value

from mmaselect.extract import seeded_noise
from mmaselect.selection import scores
from mmaselect.selection.scores.probe import sampled_cells


def integers(high, *shape, seed=0, low=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def refitted(rows, ridge):
    """What RidgeProbe predicts, by refitting for every image without it. (n, m, F + 1) -> (n, m, C).

    The standardisation is that of all images, as in the score.
    """
    n, m, _ = rows.shape
    truth = rows[..., -1].long()
    valid = truth >= 0
    known = rows[..., :-1][valid]
    x = (rows[..., :-1] - known.mean(0)) / known.std(0)
    y = F.one_hot(truth.clamp_min(0)).double()
    predicted = []
    for image in range(n):
        others = valid & (torch.arange(n) != image)[:, None]
        centre, mean = x[others].mean(0), y[others].mean(0)
        a = x[others] - centre
        weights = torch.linalg.solve(a.T @ a + ridge * valid.sum() * torch.eye(a.shape[1], dtype=a.dtype), a.T @ y[others])
        predicted.append((x[image] - centre) @ weights + mean)
    return torch.stack(predicted)


@pytest.mark.parametrize('images, channels', [(40, 5), (12, 30)], ids=['primal', 'dual'])
@pytest.mark.parametrize('ridge', [0.01, 1.0])
def test_ridge_predicts_each_image_as_if_refitted_without_it(images, channels, ridge):
    score = scores.build(dict(type='ridge', pool=1, ridge=ridge, measure='accuracy'))
    labels = integers(3, images, low=-1)
    rows = score.observe([cells(seeded_noise((images, channels), 1) + 0.1 * labels[:, None])], labels).double()
    right, counted = score.terms(rows, None)
    predicted = refitted(rows, ridge)[:, 0]  # (N, C)
    assert torch.equal(right[:, 0].bool(), (predicted.argmax(-1) == labels) & (labels >= 0))
    assert torch.equal(counted, (labels >= 0).double()[:, None])
    assert 0 < right.sum() < counted.sum()  # else this shows little

    valid, y = labels >= 0, F.one_hot(labels.clamp_min(0)).double()
    energy = (y - y[valid].mean(0)).square().sum(1) * valid
    explained, found = scores.build(dict(type='ridge', pool=1, ridge=ridge)).terms(rows, None)
    torch.testing.assert_close(found[:, 0], energy)
    torch.testing.assert_close(explained[:, 0], energy - (y - predicted).square().sum(1) * valid)


@pytest.mark.parametrize('images, channels', [(20, 4), (4, 40)], ids=['primal', 'dual'])
def test_ridge_leaves_out_all_cells_of_an_image(images, channels):
    score = scores.build(dict(type='ridge', cells=6))
    labels = integers(3, images, 3, 5, low=-1)
    rows = score.observe([seeded_noise((images, channels, 3, 5), 1) + 0.5 * labels[:, None]], labels).double()
    said, truth = refitted(rows, score.ridge).argmax(-1), rows[..., -1].long()
    assert said.shape == (images, 6)
    hits = [[((said == c) & (truth == c)).sum(1), (((said == c) | (truth == c)) & (truth >= 0)).sum(1)] for c in range(3)]
    for found, own in zip(score.terms(rows, None), zip(*hits, strict=True), strict=True):
        assert torch.equal(found, torch.stack(own, 1).double())


def test_mean_iou_by_hand():
    """32 cells, half of each class; one cell of class 0 has the feature of class 1: IoU 15 / 16 and 16 / 17."""
    labels = torch.tensor([[0, 1], [1, 0]]).expand(8, 2, 2)
    feature = labels[:, None].float().clone()
    feature[3, 0, 0, 0] = 1
    assert value('ridge', feature, labels=labels) == pytest.approx((15 / 16 + 16 / 17) / 2)


def test_cells_without_a_class_count_for_nothing():
    labels = integers(2, 12, 3, 4)
    feature = seeded_noise((12, 3, 3, 4), 1) + labels[:, None]
    feature[:, :, 1] = 1e3 * seeded_noise((12, 3, 4), 2)
    labels[:, 1] = -1
    kept = torch.tensor([0, 2])
    for name in ('ridge', 'fisher'):
        expected = value(dict(type=name, cells=8), feature[:, :, kept], labels=labels[:, kept])
        assert value(dict(type=name, cells=12), feature, labels=labels) == pytest.approx(expected)


def test_a_grid_of_fewer_cells_than_asked_for_shows_some_twice():
    assert sampled_cells(2, 2, 16).tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert len(set(sampled_cells(5, 7, 16).tolist())) == 16


@pytest.mark.parametrize('labels', [torch.zeros(6).long(), torch.full((6,), -1), torch.tensor([0] * 5 + [-1])])
def test_ridge_needs_two_classes(labels):
    with pytest.raises(ValueError, match='images of at least two classes: raise num_images'):
        value('ridge', seeded_noise((6, 3, 2, 2), 0), labels=labels)


@pytest.mark.parametrize('others', [0, 2])
def test_ridge_needs_two_images_with_classes(others):
    labels = torch.tensor([[[0, 1], [1, 0]]] + [[[-1, -1], [-1, -1]]] * others)
    with pytest.raises(ValueError, match='images of at least two classes: raise num_images'):
        value('ridge', seeded_noise((1 + others, 3, 2, 2), 0), labels=labels)


def test_what_can_be_separated_scores_one_and_chance_scores_chance():
    labels = integers(4, 600)
    noise = seeded_noise((600, 8, 2, 2), 1)
    score = dict(type='ridge', ridge=0.1)
    separable = noise + 30 * cells(F.one_hot(labels, 8))
    assert value(dict(score, measure='accuracy'), separable, labels=labels) == 1
    assert value(dict(score, measure='accuracy'), noise, labels=labels) == pytest.approx(1 / 4, abs=0.05)
    assert value(dict(score, ridge=1e-3), separable, labels=labels) > 0.95
    assert -0.1 < value(score, noise, labels=labels) < 0  # worse than the mean, as a fit to noise is
    assert value('fisher', noise, labels=labels) == pytest.approx(3 / 599, abs=0.01)


@pytest.mark.parametrize('ridge', [1e-3, 0.1])
def test_the_others_do_not_say_the_label_of_the_one_left_out(ridge):
    """With more features than images, a probe that shares the mean of all labels gets any labels right."""
    labels = integers(4, 100)
    score = dict(type='ridge', pool=1, ridge=ridge, measure='accuracy')
    assert value(score, seeded_noise((100, 1500, 1, 1), 1), labels=labels) == pytest.approx(1 / 4, abs=0.12)


def test_a_probe_of_constant_features_says_the_commonest_class():
    labels = torch.tensor([1] * 6 + [0] * 4)
    assert value(dict(type='ridge', measure='accuracy'), torch.ones(10, 3, 2, 2), labels=labels) == pytest.approx(0.6)
    of_cells = labels[:, None, None].expand(-1, 2, 2)
    assert value('ridge', torch.ones(10, 3, 2, 2), labels=of_cells) == pytest.approx(0.6 / 2)  # IoU 0.6 and 0
    assert value('fisher', torch.ones(10, 3, 2, 2), labels=labels) == 0


def test_fisher_by_hand():
    """0, 2 against 4, 6: of the squares' sum of 20, 16 lie between. A channel where the classes agree halves that."""
    labels = torch.tensor([0, 0, 1, 1])
    first, second = torch.tensor([0., 2, 4, 6]), torch.tensor([1., -1, 1, -1])
    assert value('fisher', cells(first[:, None]), labels=labels) == pytest.approx(0.8)
    assert value('fisher', cells(torch.stack([first, 100 * second], 1)), labels=labels) == pytest.approx(0.4)


@pytest.mark.parametrize('labels', [torch.zeros(6).long(), torch.full((6,), -1)])
def test_fisher_of_less_than_two_classes_is_zero(labels):
    assert value('fisher', seeded_noise((6, 3, 2, 2), 0), labels=labels) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('name', ['ridge', 'fisher'])
def test_missing_labels_are_named(name):
    with pytest.raises(ValueError, match=f"'{name}' needs labels, and the images have none"):
        value(name, torch.ones(2, 3, 2, 2))
