"""What is said against images and labels before the transformer runs, and that a control's failure costs the control alone."""
import numpy as np
import pytest
import tiny
import torch
from planted import BEST, TIMES, Planted, colours, swept

from mmaselect.extract import Extractor
from mmaselect.selection import SelectionPolicy, SelectionResult, TensorImages
from mmaselect.selection.controls import randomised
from mmaselect.selection.scores import Score


def refused(images, message, **options):
    """The sweep raises this, and no forward pass was done."""
    model = Planted()
    with pytest.raises(ValueError, match=message):
        swept(model, images, candidates=TIMES, **options)
    assert not any(kind == 'forward' for kind, _ in model.calls)


def masks(*labels):
    """Of 24 images, each mask of these labels in turn."""
    return torch.tensor(labels).repeat(12 * 20 * 24)[:24 * 12 * 20].view(24, 12, 20)


@pytest.mark.parametrize('score', ['half_consistency', 'rankme'])
def test_images_that_are_all_alike(score):
    refused(TensorImages(colours(1).expand(5, -1, -1, -1)), 'all 5 images of the sweep are alike.*check the paths', score=score)
    assert swept(Planted(), TensorImages(colours(1)), candidates=TIMES, score='hfr').num_images == 1


def test_alike_in_each_batch_is_not_alike():
    pair = colours(2).repeat_interleave(4, 0)
    assert swept(Planted(), TensorImages(pair, batch_size=4), candidates=[BEST], score='hfr').num_images == 8


def test_labels_outside_the_classes():
    images = TensorImages(colours(), masks(0, 1, 12, 200, 255))
    images.classes = 11
    refused(images, r'labels \[12, 200\] lie outside the 11 classes of the dataset: check the masks, reduce_zero_label',
            score='ridge')
    images = TensorImages(colours(), torch.arange(24) % 3 - 2)
    refused(images, r'labels \[-2\] lie outside', score='fisher')


def test_masks_of_0_and_255():
    refused(TensorImages(colours(), masks(0, 255)), r'of these 24 are \[0, 255\]: 255 means that a pixel has no class: where it '
            'stands for the second class, write 1', score='ridge')
    refused(TensorImages(colours(), masks(0)), 'at least two classes.*raise num_images, check the labels', score='ridge')


def test_a_probe_with_fewer_than_two_images_of_a_class():
    refused(TensorImages(colours(), torch.arange(24)), '24 images of 24 classes are too few.*raise num_images', score='ridge')


def test_images_of_several_labels_are_told():
    class Mixed(TensorImages):
        def batches(self, start, stop):
            for indices, images, labels in super().batches(start, stop):
                yield indices, images, None if 20 in indices else labels

    refused(Mixed(colours(), torch.arange(24) % 2, batch_size=4), 'some of these images have none or several: choose',
            score='ridge')


def test_a_failing_control_costs_the_control():
    """Planted has no weights that could be random."""
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES, controls=('random weights', 'noise'))
    assert result.timestep == BEST and list(result.controls) == ['noise'] and list(result.failures) == ['random weights']
    assert any(said.startswith("the control 'random weights' failed: AttributeError") for said in result.remarks)


def test_a_score_without_a_name():
    class Nameless(Score):
        def observe(self, maps, labels=None):
            return maps[0].flatten(1)[:, :1]

    with pytest.raises(ValueError, match=r'Nameless has no name, .* decorate it with @scores.register'):
        SelectionPolicy(score=Nameless())


def test_candidates_of_numpy_are_saved(tmp_path):
    result = swept(Planted(), TensorImages(colours()), candidates=list(np.linspace(0, BEST, 3).astype(int)))
    result.save(tmp_path / 'result.json')
    assert SelectionResult.load(tmp_path / 'result.json').policy['candidates'] == [0, BEST // 2, BEST]


@pytest.mark.parametrize('text', ['[]', '3', '{}', 'null'])
def test_a_file_that_is_no_result(text, tmp_path):
    (tmp_path / 'result.json').write_text(text)
    with pytest.raises(ValueError, match='is not a saved SelectionResult'):
        SelectionResult.load(tmp_path / 'result.json')


def test_generators_of_gpus_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', lambda seed: pytest.fail('the GPUs are seeded'))
    randomised(Extractor.from_arch(tiny.ARCH), 0)
