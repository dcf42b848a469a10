"""Images to features in a notebook."""
import numpy as np
import planted
import pytest
import runs
import tiny
import torch
from PIL import Image

from mmaselect import FeatureExtractor, notebook, select_timestep
from mmaselect.extract.inputs import to_batch
from mmaselect.selection import TensorImages

DEMO = runs.ROOT / 'configs' / 'fashion_dit'
PICTURES = [Image.fromarray(np.random.default_rng(index).integers(0, 256, (16, 24, 3), np.uint8)) for index in range(4)]


def model(**options):
    return FeatureExtractor(tiny.extractor([(1, 'hidden'), (2, 'query')]), **options)


def test_features_are_those_of_the_lower_floor():
    found = model(timestep=300, seed=5)(PICTURES)
    batch = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in PICTURES])
    expected = tiny.extractor([(1, 'hidden'), (2, 'query')])(batch, 300, seed=5)
    assert [tuple(maps.shape) for maps in found] == [(4, 16, 4, 6)] * 2
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found[0], model(timestep=300)(PICTURES)[0])  # another seed, another noise


def test_batches_do_not_change_the_result():
    extractor = model(timestep=300)
    torch.testing.assert_close(extractor(PICTURES, batch_size=3), extractor(PICTURES))
    torch.testing.assert_close(extractor(PICTURES[2])[0], extractor(PICTURES)[0][2:3])


def test_bfloat16():
    taps = [(1, 'hidden'), (2, 'query')]
    found = FeatureExtractor(tiny.extractor(taps, dtype=torch.bfloat16), timestep=300)(PICTURES)
    for own, expected in zip(found, model(timestep=300)(PICTURES), strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), expected, rtol=0.05, atol=0.05)


def test_the_choice_and_the_features_have_the_same_noise(monkeypatch):
    asked = []
    monkeypatch.setattr(notebook, 'sweep', lambda *args, **options: asked.append(options['noise']))
    for noise in ('seeded', 'none'):
        select_timestep(model(noise=noise), PICTURES)
    assert asked == ['seeded', 'none']
    batch = to_batch(PICTURES, None)
    torch.testing.assert_close(model(timestep=300, noise='none')(PICTURES), tiny.extractor([(1, 'hidden'), (2, 'query')])(
        batch, 300, noise='none'))
    with pytest.raises(ValueError, match="noise='random': 'seeded' or 'none'"):
        model(noise='random')
    with pytest.raises(ValueError, match="selection has no option 'noise'"):
        select_timestep(model(), PICTURES, dict(noise='none'))


def test_it_is_frozen():
    extractor = model(timestep=300).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor(PICTURES)[0].requires_grad


def test_selection_finds_a_planted_timestep():
    extractor = model(timestep=7)
    extractor.extractor = planted.Planted()
    selection = dict(candidates=planted.TIMES, score_taps=None, controls=())
    result = select_timestep(extractor, (planted.colours() + 1) / 2, selection, progress=False)
    assert result.timestep == planted.BEST
    assert extractor.timestep == 7  # left as it was


def test_auto_chooses_on_the_images_and_uses_the_choice():
    selection = dict(candidates=[20, 500, 900], score='hfr', controls=())  # which rewards noise
    extractor = FeatureExtractor.from_pretrained(DEMO, images=PICTURES, size=(32, 48), taps=[(2, 'hidden'), (5, 'key')],
                                                 selection=selection, progress=False)
    again = select_timestep(extractor, PICTURES, selection, progress=False)
    assert extractor.timestep == extractor.result.timestep == again.timestep
    assert [tuple(maps.shape) for maps in extractor(PICTURES)] == [(4, 128, 4, 6)] * 2
    fixed = FeatureExtractor.from_pretrained(DEMO, timestep=extractor.timestep, size=(32, 48), taps=[(2, 'hidden'), (5, 'key')])
    torch.testing.assert_close(extractor(PICTURES), fixed(PICTURES))


def test_auto_can_choose_the_tap_too():
    selection = dict(candidates=[20, 500], choose_tap=True, score_taps=[(2, 'hidden'), (5, 'key')], controls=())
    extractor = FeatureExtractor.from_pretrained(DEMO, images=PICTURES, size=32, progress=False, selection=selection)
    assert extractor.extractor.taps == (extractor.result.tap,)
    assert len(extractor(PICTURES)) == 1


def test_several_timesteps_that_are_chosen_are_all_read():
    found = FeatureExtractor.from_pretrained(DEMO, images=PICTURES, size=32, taps=[(1, 'hidden')], progress=False,
                                             selection=dict(candidates=[0, 300, 900], num_timesteps=2, controls=()))
    assert found.timestep == found.result.timesteps and len(found.timestep) == 2
    for t, maps in zip(found.timestep, found(PICTURES), strict=True):
        found.timestep = t
        torch.testing.assert_close(found(PICTURES)[0], maps)


def test_a_saved_result_is_taken(tmp_path):
    options = dict(taps=[(5, 'key')], size=32, progress=False)
    selection = dict(candidates=[20, 500], controls=())
    first = FeatureExtractor.from_pretrained(DEMO, images=PICTURES, selection=selection, **options)
    first.result.save(tmp_path / 'r.json')
    again = FeatureExtractor.from_pretrained(DEMO, result=tmp_path / 'r.json', selection=selection, **options)
    assert again.timestep == first.timestep and again.result == first.result
    for changes, what in ((dict(noise='none'), 'noise'), (dict(selection=dict(candidates=[20])), 'candidates')):
        with pytest.raises(ValueError, match=f'its {what}: .* Choose anew'):
            FeatureExtractor.from_pretrained(DEMO, result=tmp_path / 'r.json', **{**options, **changes})


def test_labels():
    extractor = model(timestep=7)
    images = torch.stack([torch.full((3, 16, 24), 0.2 + 0.6 * (index % 2)) for index in range(8)])  # dark and bright
    result = select_timestep(extractor, images, dict(score='ridge', candidates=[5, 900]), labels=[0, 1] * 4, progress=False)
    assert result.chosen.score > 0.9
    with pytest.raises(ValueError, match=r'labels \(3,\) do not fit images'):
        select_timestep(extractor, images, labels=[0, 1, 0], progress=False)


@pytest.mark.parametrize('options, message', [
    (dict(), "timestep='auto' chooses it on images"),
    (dict(timestep=5, images=PICTURES), "are for timestep='auto', not for 5"),
    (dict(timestep=5, selection=dict(candidates=3)), "selection and result are for timestep='auto'"),
    (dict(timestep=1000), r'timestep=1000.* to 999'),
    (dict(timestep=True), 'timestep=True'),
    (dict(timestep='best'), "timestep='best': 'auto', or an integer"),
])
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureExtractor.from_pretrained(DEMO, **options)


def test_without_a_timestep_it_says_what_to_do():
    with pytest.raises(RuntimeError, match=r'set model\.timestep'):
        model()(PICTURES)


def test_no_images_at_a_time_are_refused():
    for size in (0, 1.5, '2', True):
        with pytest.raises(ValueError, match=f'batch_size={size!r}: an integer, at least one'):
            model(timestep=7)(PICTURES, batch_size=size)
        with pytest.raises(ValueError, match=f'batch_size={size!r}: an integer, at least one'):
            TensorImages(torch.zeros(2, 3, 16, 16), batch_size=size)
