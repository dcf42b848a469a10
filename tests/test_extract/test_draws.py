"""Several timesteps and several draws of the noise in one call: what single calls give, from latents that are encoded once."""
import pytest
import tiny
import torch

from mmaselect.extract import draws as module
from mmaselect.extract import seeded_noise

TAPS = [(0, 'query'), (2, 'hidden')]


def encodings(extractor, monkeypatch):
    """A list that gets the size of each batch of images that is encoded."""
    calls, forward = [], extractor.encoder.forward
    monkeypatch.setattr(extractor.encoder, 'forward', lambda images: (calls.append(len(images)), forward(images))[1])
    return calls


@pytest.mark.parametrize('noise', ['seeded', 'none'])
def test_several_timesteps_are_those_of_single_calls_one_after_the_other(noise, monkeypatch):
    extractor, images = tiny.extractor(TAPS), tiny.images(3, 12, 20)
    expected = [m for t in (300, 50, 150) for m in extractor(images, t, noise=noise)]
    calls = encodings(extractor, monkeypatch)
    maps = extractor(images, [300, 50, 150], noise=noise)
    assert calls == [3]
    assert len(maps) == 6 and all(torch.equal(own, its) for own, its in zip(maps, expected, strict=True))
    assert not torch.allclose(maps[1], maps[3])


def test_random_noise_is_the_same_at_all_timesteps():
    extractor = tiny.extractor()
    first, again = extractor(tiny.images(), [500, 500], noise='random')
    assert torch.equal(first, again) and not torch.equal(first, extractor(tiny.images(), 500, noise='random')[0])


@pytest.mark.parametrize('tokens', [1, 24, 48, 2**14], ids=lambda n: f'{n} tokens per pass')
def test_draws_are_averaged(tokens, monkeypatch):
    """Two images of 3 x 4 tokens, so one, one, two or all five draws share a pass."""
    extractor, images = tiny.extractor(TAPS, dtype=torch.float64), tiny.images(2, 12, 16, dtype=torch.float64)
    latent = extractor.encoder(images)
    noises = [seeded_noise((4, 8, 8), 7)] + [seeded_noise((4, 8, 8), 7, k) for k in range(1, 5)]  # of the training's size
    noises = [noise[:, :6] for noise in noises]
    single = [extractor.features(latent, 400, noise[None]) for noise in noises]
    expected = [sum(maps) / 5 for maps in zip(*single, strict=True)]
    monkeypatch.setattr(module, 'PASS_TOKENS', tokens)
    calls, passes, features = encodings(extractor, monkeypatch), [], extractor.features
    monkeypatch.setattr(extractor, 'features', lambda latent, *rest: (passes.append(len(latent)), features(latent, *rest))[1])
    torch.testing.assert_close(list(extractor(images, 400, seed=7, draws=5)), expected)
    assert calls == [2] and sum(passes) == 10 and max(passes) == {1: 2, 24: 2, 48: 4}.get(tokens, 10)
    assert (single[0][0] - expected[0]).abs().max() > 1e-3  # else this shows nothing


def test_draws_do_not_depend_on_the_batch():
    extractor, images = tiny.extractor(), tiny.images(3)
    whole, = extractor(images, 400, draws=3)
    torch.testing.assert_close(whole[1:2], extractor(images[1:2], 400, draws=3)[0])


def test_a_timestep_per_image_goes_with_draws():
    extractor, images = tiny.extractor(), tiny.images(2)
    both, = extractor(images, torch.tensor([100, 700]), draws=3)
    for k, t in enumerate((100, 700)):
        torch.testing.assert_close(both[k:k + 1], extractor(images[k:k + 1], t, draws=3)[0])


def test_all_sizes_have_the_same_noise_where_they_overlap():
    """A head that was trained on one size meets the noise that it knows in images of another."""
    extractor = tiny.extractor()
    canvas = extractor.draw(torch.zeros(1, 4, 20, 30), seed=7, draws=3)
    for height, width in ((8, 8), (4, 12), (20, 6)):
        for own, whole in zip(extractor.draw(torch.zeros(1, 4, height, width), seed=7, draws=3), canvas, strict=True):
            assert torch.equal(own, whole[..., :height, :width])
    squares = canvas[0][0, :, :16, :24].unflatten(1, (2, 8)).unflatten(3, (3, 8)).permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1)
    assert (torch.corrcoef(squares) - torch.eye(6)).abs().max() < 0.25  # of 256 numbers each: none repeats another
    assert abs(canvas[1].std() - 1) < 0.05


def test_one_draw_is_the_noise_that_there_always_was():
    extractor, images = tiny.extractor(), tiny.images()
    latent = extractor.encoder(images)
    expected, = extractor.features(latent, 400, seeded_noise(latent.shape[1:], 7)[None])
    assert torch.equal(extractor(images, 400, seed=7, draws=1)[0], expected)


def test_draws_let_gradients_through():
    extractor = tiny.extractor(arch=tiny.PIXEL_ARCH)
    images = tiny.images().requires_grad_()
    extractor(images, [100, 300], draws=2)[1].square().sum().backward()
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize('options, message', [
    (dict(draws=0), '0 draws of noise'),
    (dict(draws=2.5), '2.5 draws of noise'),
    (dict(noise='none', draws=2), "2 draws of noise 'none'.* without noise no more"),
    (dict(noise='white'), "not 'white'"),
])
def test_bad_draws_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny.extractor()(tiny.images(), 50, **options)


def test_each_of_several_timesteps_is_checked():
    with pytest.raises(ValueError, match='1000'):
        tiny.extractor()(tiny.images(), [50, 1000])
