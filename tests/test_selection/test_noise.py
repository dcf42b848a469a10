"""The sweep scores the features that the head will get: with the noise that the backbone adds."""
import pytest
import tiny
import torch
from planted import Planted, colours, swept
from scoring import value

from mmaselect.extract import seeded_noise
from mmaselect.selection import Measurement, Score, TensorImages
from mmaselect.selection.scores import build


class Maps(Score):
    """Its rows are the maps of both views as they are."""
    name, views = 'maps', 2

    def observe(self, maps, labels=None):
        return torch.stack(maps, 1)


def measured(extractor, images, t, **options):
    """Maps of the first and of the second view, (N, D, h, w) each."""
    measurement = Measurement(extractor, [Maps()], seed=3, **options)
    measurement.add(TensorImages(images, batch_size=2).batches(0, len(images)))
    measurement.run([t])
    (_, _, rows, _), = measurement.gathered()
    return rows.float().unbind(1)


def test_seeded_views_have_the_first_and_the_second_draw_of_the_backbone():
    extractor, images = tiny.extractor(), tiny.images(5, 16, 24)
    first, second = measured(extractor, images, 300, noise_seed=7)
    with torch.no_grad():
        torch.testing.assert_close(first, extractor(images, 300, seed=7)[0])
        latent = extractor.encoder(images)
        torch.testing.assert_close(second, extractor.features(latent, 300, extractor.draw(latent, seed=7, draws=2)[1])[0])
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize('noise', ['seeded', 'random'])
def test_features_are_averaged_over_the_draws_of_the_backbone(noise):
    extractor, images = tiny.extractor(), tiny.images(5, 16, 24)
    first, second = measured(extractor, images, 300, noise=noise, noise_seed=7, draws=3)
    with torch.no_grad():
        if noise == 'seeded':
            torch.testing.assert_close(first, extractor(images, 300, seed=7, draws=3)[0])
        clean = extractor(images, 300, noise='none')[0]
    once = measured(extractor, images, 300, noise=noise, noise_seed=7)
    assert all((many - one).abs().max() > 0.05 for many, one in zip((first, second), once, strict=True))
    assert (first - clean).square().mean() < (once[0] - clean).square().mean()  # each draw's share of the noise is smaller


def test_without_noise_both_views_are_the_clean_features():
    extractor, images = tiny.extractor(), tiny.images(3)
    with torch.no_grad():
        wanted, = extractor(images, 300, noise='none')
    for view in measured(extractor, images, 300, noise='none'):
        torch.testing.assert_close(view, wanted)


@pytest.mark.parametrize('noise, alike', [('seeded', True), ('random', False)])
def test_equal_images_get_equal_features_where_the_noise_is_one(noise, alike):
    first, _ = measured(tiny.extractor(), tiny.images(1).expand(2, -1, -1, -1), 300, noise=noise)
    assert torch.allclose(first[0], first[1], atol=1e-5) == alike


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="noise is 'seeded', 'random' or 'none', not 'pink'"):
        swept(Planted(), TensorImages(colours()), noise='pink')


@pytest.mark.parametrize('score', ['view_consistency', 'half_consistency', 'cell_consistency', 'hfr_coherent', 'lidar'])
def test_what_all_images_share_in_a_view_changes_nothing(score):
    """Such as the noise that all of them are given, another in each view."""
    content = seeded_noise((60, 4, 4, 6), 0)
    views = [content + 0.5 * seeded_noise(content.shape, k) for k in (1, 2)]
    shifted = [view + 5 * seeded_noise((1, 4, 4, 6), k) for view, k in zip(views, (3, 4), strict=True)]
    assert value(score, *shifted) == pytest.approx(value(score, *views), rel=1e-4)


def test_what_was_measured_can_be_forgotten_and_measured_again():
    measurement = Measurement(tiny.extractor(), [build('hfr'), build('hfr_coherent')])
    measurement.add(TensorImages(tiny.images(3)).batches(0, 3))

    def rows_at(*timesteps):
        measurement.run(timesteps)
        return [(t, tap, rows.tolist(), None if total is None else total.tolist())
                for place in (0, 1) for t, tap, rows, total in measurement.gathered(place)]
    first = rows_at(5)
    measurement.forget()
    assert [t for t, *_ in rows_at(700)] == [700] * len(first)
    measurement.forget()
    assert rows_at(5) == first
