"""What is chosen besides the timestep, how sure the choice is, and what it costs."""
import importlib
from dataclasses import replace

import pytest
import tiny
import torch
from planted import BEST, TIMES, TWO_TAPS, Given, Planted, colours, swept

from mmaselect.extract import seeded_noise
from mmaselect.selection import SelectionResult, TensorImages
from mmaselect.selection.candidates import refined_candidates
from mmaselect.selection.confidence import bootstrap, confidence
from mmaselect.selection.controls import randomised

module = importlib.import_module('mmaselect.selection.sweep')  # the function hides it


class Unclear(Planted):
    """Features are noise of their own at each timestep: no choice is better than another."""

    def features(self, latent, t, noise):
        noise = noise.mean((2, 3), keepdim=True)
        return (torch.sin(1e3 * (t[:, None, None, None] + 1) * noise),)


# Timestep and tap


def test_tap_and_timestep_are_chosen_together():
    result = swept(Planted(TWO_TAPS), TensorImages(colours()), candidates=TIMES, choose_tap=True)
    assert (result.timestep, result.tap) == (200, (1, 'hidden'))
    assert all(c.score == c.tap_scores[1] for c in result.candidates)
    assert 'timestep t=200 and tap 1.hidden' in result.summary()


def test_the_order_of_the_taps_changes_nothing():
    result = swept(Planted(TWO_TAPS[::-1]), TensorImages(colours()), candidates=TIMES, choose_tap=True)
    assert (result.timestep, result.tap) == (200, (0, 'hidden'))


def test_without_a_choice_of_tap_the_mean_counts():
    result = swept(Planted(TWO_TAPS), TensorImages(colours()), candidates=TIMES)
    assert result.tap is None and all(c.score == pytest.approx(sum(c.tap_scores) / 2) for c in result.candidates)


# Finer steps


@pytest.mark.parametrize('timesteps, first, chosen, last, added', [
    ([0, 100, 400], 1, 1, 1, [50, 250]), ([0, 100, 400], 0, 0, 0, [50]), ([0, 100, 400], 2, 2, 2, [250]),
    ([0, 1, 4], 1, 1, 1, [2]), ([0, 1, 2], 1, 1, 1, []), ([7], 0, 0, 0, []),
    ([0, 10, 20, 30, 40, 50, 60], 1, 3, 5, [5, 55, 25, 35])])
def test_finer_steps_lie_across_the_bounds_and_beside_the_choice(timesteps, first, chosen, last, added):
    assert refined_candidates(timesteps, first, chosen, last) == added


def test_finer_steps_find_the_middle_of_a_plateau():
    """A curve whose plateau reaches from t=90 to t=490, the middle of which is at 250 on the scale of square roots."""
    model, images = Planted(), TensorImages(colours(8))
    model.features = lambda latent, t, noise: [(((t >= 90) & (t < 490)) * 1.0).view(-1, 1, 1, 1)]
    found = [swept(model, images, candidates=[0, 60, 300, 700, 999], score=Given(), budget=budget) for budget in (None, 400)]
    assert [result.timestep for result in found] == [300, pytest.approx(250, abs=12)]


def test_finer_steps_find_an_optimum_between_the_candidates():
    images = TensorImages(colours(8))
    options = dict(candidates=[0, 100, 400, 999], noise='random', plateau=0)
    coarse, fine = swept(Planted(), images, **options), swept(Planted(), images, budget=1000, **options)
    assert coarse.timestep == 100 and abs(fine.timestep - BEST) <= 2
    assert fine.chosen.score > coarse.chosen.score
    assert len(fine.candidates) > 4 and fine.forwards == 8 * 2 * len(fine.candidates) <= 1000


@pytest.mark.parametrize('budget', [64, 95, 96, 127, 128, 200])
def test_the_budget_is_never_exceeded(budget):
    """8 images, 2 views: a timestep costs 16."""
    result = swept(Planted(), TensorImages(colours(8)), candidates=[0, 100, 400, 999], budget=budget)
    assert result.forwards <= budget < result.forwards + 16
    assert result.forwards == 16 * len(result.candidates)


def test_what_is_added_later_is_measured_as_if_it_had_been_there():
    images = TensorImages(colours(8))
    fine = swept(Planted(), images, candidates=[0, 100, 400, 999], budget=200)
    again = swept(Planted(), images, candidates=[c.timestep for c in fine.candidates])
    assert again.timestep == fine.timestep
    assert [c.score for c in again.candidates] == pytest.approx([c.score for c in fine.candidates], rel=1e-5)


# More images


@pytest.mark.parametrize('model, used', [(Planted, 8), (Unclear, 20)])
def test_images_are_added_until_the_choice_is_clear(model, used, monkeypatch):
    monkeypatch.setattr(module, 'FIRST_IMAGES', 8)
    options = dict(candidates=TIMES, score='view_consistency', noise='random')
    result = swept(model(), TensorImages(colours(20)), num_images='auto', **options)
    assert result.num_images == used and result.forwards == used * 2 * len(TIMES)
    alone = swept(model(), TensorImages(colours(20)[:used]), **options)
    assert replace(result, seconds=0, policy={}) == replace(alone, seconds=0, policy={})


def test_fewer_images_than_the_first_step_are_all_used():
    assert swept(Planted(), TensorImages(colours(5)), candidates=TIMES, num_images='auto').num_images == 5


# Confidence


def test_a_clear_choice_is_sure():
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES)
    assert result.interval == (BEST, BEST) and result.probability > 0.95
    assert not result.unsure and not result.flat and result.remarks == []


def test_an_unclear_choice_is_said():
    result = swept(Unclear(), TensorImages(colours()), candidates=range(0, 1000, 100), noise='random')
    low, high = result.interval
    assert low <= result.timestep <= high and result.probability < 0.9
    assert result.unsure
    assert any(f'the choice is unsure: images drawn again would choose anything from t={low} to t={high}' in remark
               for remark in result.remarks)


def test_a_curve_without_a_peak_is_said():
    """One draw of noise for all images makes all features alike, and all scores 0."""
    result = swept(Unclear(), TensorImages(colours()), candidates=range(0, 1000, 100))
    assert [c.score for c in result.candidates] == [0] * 10 and result.interval == (200, 200)
    assert result.flat and 'from t=0 to t=900 the scores stay within 20% of their range' in ' '.join(result.remarks)


def test_a_score_that_is_no_mean_over_images_has_no_interval(tmp_path):
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES, score='rankme')
    assert result.interval is None and result.probability is None and not result.unsure
    result.save(tmp_path / 'r.json')
    assert SelectionResult.load(tmp_path / 'r.json') == result


def test_the_bootstrap_has_the_standard_error_of_a_mean():
    values = seeded_noise((400, 1), 0).double()
    draws = bootstrap([(values, torch.ones_like(values)), (2 * values, torch.ones_like(values))], resamples=4000)
    assert draws.shape == (4000, 2)
    assert draws[:, 0].mean().item() == pytest.approx(values.mean().item(), abs=0.01)
    assert draws[:, 0].std().item() == pytest.approx(values.std().item() / 20, rel=0.1)
    torch.testing.assert_close(draws[:, 1], 2 * draws[:, 0])  # the same resamples for every candidate


def test_the_interval_leaves_as_much_on_either_side():
    """100 resamples, the k-th of which chooses the k-th of 100 timesteps: five fall off at either end."""
    timesteps = [10 * k for k in range(100)]
    assert confidence(torch.eye(100), timesteps, 7, 0.2) == ((50, 940), pytest.approx(0.01), pytest.approx(0.03))


def test_resamples_choose_as_the_sweep_does():
    curves = torch.tensor([[0.9, 1, 0.9, 0.9, 0], [0.9, 1, 0.5, 0.5, 0]])  # the middle of four, and of two
    assert confidence(curves, [0, 10, 40, 90, 160], 2, 0.2) == ((10, 40), pytest.approx(0.5), pytest.approx(1))


def test_growing_needs_a_score_that_can_tell_how_sure_it_is():
    with pytest.raises(ValueError, match="'rankme' cannot say how stable"):
        swept(Planted(), TensorImages(colours()), score='rankme', num_images='auto')


# Controls


def test_controls_are_recorded_and_counted():
    extractor = tiny.extractor()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    state = torch.get_rng_state()
    result = swept(extractor, TensorImages(tiny.images(70)), candidates=3, score='hfr', controls=('noise', 'random weights'))
    assert list(result.controls) == ['noise', 'random weights']
    assert set(result.controls.values()) <= {c.timestep for c in result.candidates}
    assert result.forwards == 3 * (70 + 64 + 64) and result.num_images == 70
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_random_weights_forget_the_transformer_and_keep_the_rest():
    extractors = [tiny.extractor([(1, 'mlp')], seed=seed) for seed in (1, 2)]
    extractors[1].encoder.load_state_dict(extractors[0].encoder.state_dict())
    models = [(extractor, randomised(extractor, 7), randomised(extractor, 8)) for extractor in extractors]
    maps = [[model(tiny.images(), 50)[0] for model in own] for own in models]
    assert not torch.allclose(maps[0][0], maps[1][0])
    assert torch.equal(maps[0][1], maps[1][1]) and torch.equal(maps[0][2], maps[1][2])
    assert not torch.allclose(maps[0][1], maps[0][2])


def test_the_control_on_noise_never_sees_the_images():
    found = [swept(Unclear(), TensorImages(images), candidates=TIMES, controls=('noise',)).controls
             for images in (colours(), -colours())]
    assert found[0] == found[1]


def test_a_control_that_chooses_the_same_is_said():
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES, controls=('noise',))
    assert result.controls == {'noise': BEST}  # there, this model shows any image and no noise at all
    remark, = result.remarks
    assert remark.startswith(f'a control would have chosen the same (noise, t={BEST})')
    assert not replace(result, controls={'noise': 0, 'random weights': 999}).remarks


def test_unknown_controls_are_refused():
    with pytest.raises(ValueError, match=r"controls are some of .*, not \('shuffled',\)"):
        swept(Planted(), TensorImages(colours()), candidates=TIMES, controls=('shuffled',))


# The record


def test_tap_interval_and_controls_survive_json(tmp_path):
    result = swept(Planted(TWO_TAPS), TensorImages(colours()), candidates=TIMES, choose_tap=True, controls=('noise',))
    result.save(tmp_path / 'r.json')
    assert SelectionResult.load(tmp_path / 'r.json') == result
    assert result.interval and result.controls and result.versions.keys() == {'mmaselect', 'torch', 'diffusers'}
    assert result.figure().axes[0].get_legend() is not None


def test_the_hash_is_of_the_transformers_weights():
    extractor = tiny.extractor()

    def hashed():
        return swept(extractor, TensorImages(tiny.images(1)), candidates=1, score='hfr').weights

    before = hashed()
    with torch.no_grad():
        next(extractor.encoder.parameters()).add_(1)
        assert hashed() == before
        last = list(extractor.family.parameters())[-1]
        last.view(-1)[-1] += 1e-3
    assert hashed() != before


def test_scores_of_several_scales_do_not_choose_a_tap():
    with pytest.raises(ValueError, match="'hfr' is not on one scale for all taps"):
        swept(Planted(TWO_TAPS), TensorImages(colours()), score='hfr', choose_tap=True)


def test_a_budget_that_the_candidates_exceed_is_refused():
    with pytest.raises(ValueError, match='a budget of 100 .* less than the 336 that 24 images at 7 candidates take'):
        swept(Planted(), TensorImages(colours()), candidates=TIMES, budget=100)
