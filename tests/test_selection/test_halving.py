"""Successive halving: candidates that cannot be on the plateau are measured on few images."""
import re

import pytest
import torch
from planted import TIMES, Given, Planted, colours, swept

from mmaselect.selection import TensorImages

CURVE = dict(zip(TIMES, (0.4, 1, 0.9, 0.85, 0.6, 0.3, 0), strict=True))


class Noisy(Planted):
    """A curve, and of each image a deviation of its own that all timesteps share."""

    def features(self, latent, t, noise):
        own = latent.mean((1, 2, 3))
        self.calls.append(('forward', len(latent)))
        return [(torch.tensor([CURVE[k] for k in t.tolist()]) + own).view(-1, 1, 1, 1)]


@pytest.mark.parametrize('options', [dict(score=Given(), plateau=0.2), dict(score=Given(), plateau=0), dict(noise='random')])
def test_it_chooses_what_the_grid_chooses_for_less(options):
    model = Planted if 'noise' in options else Noisy
    grid, halving = (swept(model(), TensorImages(colours(64)), candidates=TIMES, search=search, **options)
                     for search in ('grid', 'halving'))
    assert halving.timestep == grid.timestep and halving.num_images == grid.num_images == 64
    assert halving.forwards < 0.85 * grid.forwards
    chosen = {c.timestep: c for c in grid.candidates}
    for candidate in halving.candidates:
        assert candidate.num_images in (16, 32, 64)
        if candidate.num_images == 64:  # the scores of what was measured to the end are the grid's
            assert candidate.score == pytest.approx(chosen[candidate.timestep].score, rel=1e-5)


def test_what_was_ruled_out_keeps_its_distance():
    """Its score rises with that of the others, which have more images by now."""
    result = swept(Noisy(), TensorImages(colours(64)), candidates=TIMES, search='halving', score=Given(), plateau=0.2)
    first, last = result.candidates[1], result.candidates[-1]
    assert last.num_images == 16 and first.num_images == 64
    assert first.score - last.score == pytest.approx(1, abs=1e-4)


def test_forward_passes_are_said_before_and_their_time_after_the_first():
    lines, model = [], Planted()

    def log(line):
        lines.append((line, sum(kind == 'forward' for kind, _ in model.calls)))
    result = swept(model, TensorImages(colours(64)), candidates=TIMES, search='halving', controls=('noise',), log=log)
    (before, none), (after, one) = lines
    assert (none, one) == (0, 1)
    planned = int(re.search(r'at most (\d+) forward passes \(64 images, 2 of each, 7 timesteps, 1 controls\)', before)[1])
    assert planned == (64 + 64) * 2 * 7 >= result.forwards
    assert re.search(r'at most (\d+ min )?\d+ s to go, by the first \d+ forward passes', after)


def test_several_timesteps_are_chosen_among_all():
    result = swept(Planted(), TensorImages(colours(64)), candidates=TIMES, search='halving', num_timesteps=2)
    assert {c.num_images for c in result.candidates} == {64}


class Unnamed(TensorImages):
    """Images of a set that does not name its classes."""
    num_classes = None


def test_labels_that_are_too_few_in_the_end_are_refused():
    """Where the first stages had enough of each class, too."""
    labels = torch.cat([torch.arange(32) % 2, torch.arange(2, 34)])
    for search in ('grid', 'halving'):
        with pytest.raises(ValueError, match='64 images of 34 classes are too few'):
            swept(Planted(), Unnamed(colours(64), labels), candidates=TIMES, search=search, score='ridge')


@pytest.mark.parametrize('pixel', [True, False])
def test_labels_that_come_late(pixel):
    """The first images of a sample may be of one class, or too few of each, where the whole is well."""
    labels = torch.arange(64) >= 40 if pixel else torch.arange(64) % 16
    labels = labels.long()[:, None, None].expand(-1, 12, 20) if pixel else labels
    grid, halving = (swept(Planted(), Unnamed(colours(64), labels), candidates=TIMES, search=search, score='ridge')
                     for search in ('grid', 'halving'))
    assert halving.timestep == grid.timestep
    with pytest.raises(ValueError, match='images of at least two classes'):
        swept(Planted(), TensorImages(colours(64), torch.zeros(64, 12, 20, dtype=torch.long)), candidates=TIMES,
              search='halving', score='ridge')
