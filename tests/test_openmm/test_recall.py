"""DiTBackbone(recall=...): features of images that it was trained on before."""
import copy

import pytest
import tiny
import torch

from mmaselect.openmm import recall as recall_module
from mmaselect.openmm.recall import USELESS, Recall


@pytest.fixture
def run():
    """Counts the images that it computes."""
    def compute(images):
        compute.seen += len(images)
        return images[:, :1] * 2, images[:, 1:] + 1
    compute.seen = 0
    return compute


def test_each_image_is_computed_once(run):
    recall, images = Recall(1), tiny.images(4)
    for places, computed in ([0, 1], 2), ([1, 0], 2), ([2, 0, 3], 4), ([3, 1], 4):
        maps = recall(run, images[places], None)
        assert run.seen == computed
        assert torch.equal(maps[0], images[places][:, :1] * 2) and torch.equal(maps[1], images[places][:, 1:] + 1)


@pytest.mark.parametrize('change', [lambda x: x.flip(-1), lambda x: x.double(), lambda x: x.transpose(2, 3), lambda x: x + 1e-6])
def test_another_image_is_computed(run, change):
    recall, images = Recall(1), tiny.images(1, 16, 24)
    recall(run, images, None)
    assert torch.equal(recall(run, change(images), None)[0], change(images)[:, :1] * 2)
    assert run.seen == 2


def test_other_settings_are_computed(run):
    recall, images = Recall(1), tiny.images(1)
    recall(run, images, 'a')
    recall(run, images, 'b')
    assert run.seen == 2


def test_what_is_done_to_the_maps_is_not_remembered(run):
    recall, images = Recall(1), tiny.images(2)
    for _ in range(3):
        maps = recall(run, images, None)
        assert torch.equal(maps[1], images[:, 1:] + 1)
        maps[1].zero_()


def test_when_the_memory_is_full_the_first_ones_stay(run):
    images = tiny.images(4)
    recall = Recall(2.5 * images[0].numel() * 4 / 2**30)  # of two images
    for _ in range(3):
        recall(run, images, None)
    assert run.seen == 4 + 2 + 2


def test_where_nothing_comes_twice_it_stops_and_says_so(run, monkeypatch):
    said = []
    monkeypatch.setattr(recall_module, 'print_log', lambda message, *_: said.append(message))
    recall = Recall(1.5 * tiny.images(1).numel() * 4 / 2**30)  # of one image
    for seed in range(USELESS + 1):
        recall(run, tiny.images(1, seed=seed), None)
    assert not recall.kept and 'none of 11 images came twice' in said[0]
    recall(run, tiny.images(1, seed=0), None)
    assert run.seen == USELESS + 2 and len(said) == 1


@pytest.mark.parametrize('arch', [tiny.ARCH, tiny.PIXEL_ARCH], ids=['latents', 'pixels'])
def test_training_gets_what_it_would_get_without(arch):
    options = dict(arch=arch, taps=[[1, 'value'], [-1, 'hidden']], timestep=[40, 50])
    plain, own = tiny.backbone(**options), tiny.backbone(**options, recall=1)
    images = tiny.images(4)
    for places in [0, 1], [1, 2], [3, 0]:
        for expected, found in zip(plain(images[places]), own(images[places]), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert own.recall.computed == 4


def test_validation_neither_uses_nor_fills_it():
    own = tiny.backbone(timestep=50, recall=1).eval()
    own(tiny.images())
    assert not own.recall.kept


def test_another_choice_or_other_weights_are_not_answered_from_it():
    own, other = tiny.backbone(recall=1), tiny.backbone(seed=1, timestep=50)
    images = tiny.images()
    own.select(80)
    before = own(images)[0]
    own.load_state_dict(other.state_dict())
    assert not torch.allclose(own(images)[0], before)
    assert torch.equal(own(images)[0], other(images)[0])


def test_a_copy_has_a_memory_of_its_own():
    own = tiny.backbone(timestep=50, recall=1)
    own(tiny.images())
    assert own.recall.kept and not copy.deepcopy(own).recall.kept


@pytest.mark.parametrize('options', [dict(frozen=False), dict(noise='random'), dict(lora=dict(r=2))])
def test_features_that_change_are_refused(options):
    with pytest.raises(ValueError, match='recall is for features that are the same in every epoch'):
        tiny.backbone(timestep=50, recall=1, **options)


def test_less_than_nothing_is_refused():
    with pytest.raises(ValueError, match='recall=-1'):
        tiny.backbone(timestep=50, recall=-1)
