import os
import re

import processes
import pytest
import tiny
import torch
from planted import BEST, RUNS, TIMES, TWO_TAPS, Given, Planted, colours, rank_of_two, run, swept

from mmaselect.extract import NoiseProcess
from mmaselect.selection import SCORES, SelectionPolicy, SelectionResult, TensorImages
from mmaselect.selection.candidates import candidate_grid, resolve_candidates
from mmaselect.selection.choice import plateau_centre


def scores_of(result):
    return [c.score for c in result.candidates]


def classes(count=24):
    """Labels of ``colours``: how red."""
    red = colours(count)[:, 0].mean((1, 2))
    return (red > red.median()).long()


@pytest.mark.parametrize('score', ['hfr', 'hfr_coherent', 'view_consistency', 'half_consistency', 'fisher'])
def test_finds_the_planted_timestep(score):
    result = swept(Planted(), TensorImages(colours(), classes()), candidates=TIMES, score=score, noise='random',
                   plateau=0)
    assert result.timestep == BEST
    assert not result.edge
    assert [c.timestep for c in result.candidates] == list(TIMES)


@pytest.mark.parametrize('score', SCORES)
def test_batch_sizes_change_nothing(score):
    results = [swept(Planted(), TensorImages(colours(), classes(), batch_size=size), candidates=TIMES, score=score,
                     forward_batch=forward)
               for size, forward in ((24, 64), (5, 64), (24, 1), (1, 7))]
    assert len({r.timestep for r in results}) == 1
    for result in results[1:]:
        assert scores_of(result) == pytest.approx(scores_of(results[0]), rel=1e-4, abs=1e-6)


def test_the_order_of_the_images_changes_nothing():
    class Reversed(TensorImages):
        def batches(self, start, stop):
            return reversed(list(super().batches(start, stop)))

    results = [swept(Planted(), kind(colours(), batch_size=1), candidates=TIMES) for kind in (TensorImages, Reversed)]
    assert scores_of(results[0]) == scores_of(results[1])


def test_twice_in_a_row_is_the_same_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    first = swept(Planted(), TensorImages(colours()), candidates=TIMES)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    second = swept(Planted(), TensorImages(colours()), candidates=TIMES)
    assert torch.equal(before, torch.get_rng_state())
    assert first.candidates == second.candidates
    assert scores_of(first) != scores_of(swept(Planted(), TensorImages(colours()), candidates=TIMES, seed=1))


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Results and forward passes of both ranks, by the name of the run."""
    folder = tmp_path_factory.mktemp('ranks')
    processes.two(rank_of_two, str(folder))
    results = {name: [SelectionResult.load(folder / f'{name}.{rank}.json') for rank in (0, 1)] for name in (*RUNS, 'failing')}
    forwards = {name: [torch.load(folder / f'{name}.{rank}.pt', weights_only=True) for rank in (0, 1)] for name in RUNS}
    return {name: (own, forwards.get(name)) for name, own in results.items()}


@pytest.mark.parametrize('name', RUNS)
def test_two_ranks_share_the_work_and_agree(name, ranks):
    (first, second), forwards = ranks[name]
    alone, whole = run(name)
    assert first.candidates == second.candidates and (first.timesteps, first.tap) == (second.timesteps, second.tap)
    assert (first.timesteps, first.tap, first.num_images) == (alone.timesteps, alone.tap, alone.num_images)
    assert (first.interval, first.probability) == (alone.interval, alone.probability)
    assert scores_of(first) == pytest.approx(scores_of(alone), rel=1e-5)
    assert first.forwards == second.forwards == sum(forwards) == alone.forwards == whole


def test_what_two_ranks_find_is_right(ranks):
    found = {name: results[0] for name, (results, _) in ranks.items()}
    assert {found[name].timestep for name in ('plain', 'halved', 'grown', 'coherent', 'one image')} == {BEST}
    assert (found['tap'].timestep, found['tap'].tap) == (TWO_TAPS[1][0], (1, 'hidden'))
    assert found['grown'].num_images == 128  # of 150
    assert ranks['plain'][1] == [12 * 2 * len(TIMES), 11 * 2 * len(TIMES)]
    assert ranks['one image'][1] == [len(TIMES), 0]


def test_a_control_that_fails_on_one_rank_fails_on_both(ranks):
    for result in ranks['failing'][0]:
        assert result.timestep == BEST and result.failures == {'random weights': 'MemoryError: full'}


def test_each_view_is_encoded_once_and_candidates_share_forward_passes():
    model = Planted()
    swept(model, TensorImages(colours(8), batch_size=8), candidates=TIMES, forward_batch=32)
    assert [call for call in model.calls if call[0] == 'encode'] == [('encode', 8)] * 2
    assert [call for call in model.calls if call[0] == 'forward'] == [('forward', 32)] * 3 + [('forward', 16)]


def test_the_vae_sees_each_view_once():
    extractor, seen = tiny.extractor(), []
    extractor.encoder.vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    swept(extractor, TensorImages(tiny.images(6), batch_size=4), candidates=5, forward_batch=3)
    assert sum(seen) == 6 * 2


def test_a_real_extractor_keeps_its_mode_and_weights():
    extractor = tiny.extractor([(0, 'query'), (-1, 'hidden')]).train()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    result = swept(extractor, TensorImages(tiny.images(6), batch_size=3), candidates=5, score='hfr')
    assert extractor.training
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())
    assert all(len(c.tap_scores) == 2 and c.score == pytest.approx(sum(c.tap_scores) / 2) for c in result.candidates)


@pytest.mark.parametrize('score', SCORES)
@pytest.mark.parametrize('height, width', [(4, 24), (13, 21)])
def test_every_score_of_a_real_extractor_on_odd_images(score, height, width):
    """Grids of 1x6 and 4x6 cells, the second with cells that reach beyond the image."""
    images, labels = tiny.images(6, height, width), torch.arange(6 * height * width).view(6, height, width) // 5 % 3
    result = swept(tiny.extractor(), TensorImages(images, labels), candidates=[0, 300], score=score)
    assert all(isinstance(score, float) for score in scores_of(result))  # and finite, or the sweep had refused


def test_labels_per_pixel_are_those_at_the_middle_of_the_cells():
    """An extractor whose feature is the label at the middle of its 4x4 pixels, at the end of the image its last pixel."""
    class Cells(Planted):
        token_stride = 4

        def features(self, latent, t, noise):
            return (latent[:, :1, [2, 6, 8]][:, :, :, [2, 6, 10, 12]],)

    labels = torch.randint(2, (10, 9, 13), generator=torch.Generator().manual_seed(0))
    images = labels[:, None].float().expand(-1, 3, -1, -1)
    labels[0, 2, 2] = 255
    for score in ('ridge', 'fisher'):
        result = swept(Cells(), TensorImages(images, labels), candidates=[0], score=dict(type=score, cells=12))
        assert result.chosen.score == pytest.approx(1)


def test_class_255_of_an_image_is_a_class():
    labels = torch.where(classes() > 0, 255, 254)
    result = swept(Planted(), TensorImages(colours(), labels), candidates=[BEST],
                   score=dict(type='ridge', ridge=0.1, measure='accuracy'))
    assert result.chosen.score > 0.8


def test_scores_that_need_labels_say_so():
    with pytest.raises(ValueError, match="'ridge' needs labels, and these images have none"):
        swept(Planted(), TensorImages(colours()), candidates=TIMES, score='ridge')


def test_a_probe_asks_the_labels_where_there_are_enough():
    masks = classes()[:, None, None].expand(-1, 12, 20)
    found = [swept(Planted(), TensorImages(colours(), labels), candidates=TIMES, score='probe')
             for labels in (masks, classes(), None)]
    assert [result.score['type'] for result in found] == ['ridge', 'half_consistency', 'half_consistency']
    assert scores_of(found[0])[0] < 0.5 < found[0].chosen.score


def test_coherent_hfr_of_images_of_two_sizes_is_refused():
    class TwoSizes(TensorImages):
        def batches(self, start, stop):
            for indices, images, labels in super().batches(start, stop):
                yield indices, images[..., :12 + indices[0]], labels

    with pytest.raises(ValueError, match='needs images of one size: set image_size'):
        swept(Planted(), TwoSizes(colours(), batch_size=4), candidates=TIMES, score='hfr_coherent')


def test_one_candidate_is_chosen_and_no_edge():
    result = swept(Planted(), TensorImages(colours()), candidates=[400])
    assert (result.timestep, result.edge) == (400, None)


def test_an_optimum_at_the_edge_is_said():
    result = swept(Planted(), TensorImages(colours()), candidates=[BEST, 400, 999])
    assert result.edge == 'low' and 'highest at the edge of the candidates, the low-noise end; the optimum' in result.remarks[0]


def test_nothing_lies_beyond_the_ends_of_the_schedule():
    """Planted richness falls from t=130 on; the other model is richest at the last timestep."""
    def remarks(model, *candidates):
        return ' '.join(swept(model, TensorImages(colours()), candidates=candidates).remarks)
    beyond = 'the optimum may lie beyond'
    assert beyond in remarks(Planted(), BEST, 400, 999) and beyond in remarks(Planted(((999, 1),)), 0, 500, 998)
    ends = remarks(Planted(((0, 1),)), 0, 500, 999), remarks(Planted(((999, 1),)), 0, 500, 999)
    assert all('highest at the edge' in said and beyond not in said for said in ends)


@pytest.mark.parametrize(('plateau', 'chosen'), [(0, 40), (0.2, 90), (0.65, 40)])
def test_the_choice_is_the_middle_of_the_plateau(plateau, chosen):
    scores = dict(zip(TIMES, (0.4, 1, 0.9, 0.85, 0.6, 0.3, 0), strict=True))
    model = Planted()
    model.features = lambda latent, t, noise: [torch.tensor([scores[k] for k in t.tolist()]).view(-1, 1, 1, 1)]
    result = swept(model, TensorImages(colours()), candidates=TIMES, score=Given(), plateau=plateau)
    assert (result.timestep, result.interval, result.probability) == (chosen, (chosen, chosen), 1)


def test_the_middle_is_that_of_the_chosen_taps_own_plateau():
    """The second tap is better at the first one's middle, and never as good as the first at its best."""
    curves = [dict(zip(TIMES, own, strict=True))
              for own in ((0.4, 1, 0.9, 0.85, 0.6, 0.3, 0), (0.2, 0.9, 0.95, 0.95, 0.5, 0.3, 0))]
    model = Planted(TWO_TAPS)
    model.features = lambda latent, t, noise: [torch.tensor([own[k] for k in t.tolist()]).view(-1, 1, 1, 1) for own in curves]
    result = swept(model, TensorImages(colours()), candidates=TIMES, score=Given(), choose_tap=True)
    assert (result.timestep, result.tap, result.probability) == (90, (0, 'hidden'), 1)
    assert 't=90 and tap 0.hidden' in result.summary() and 'by given 0.9000' in result.summary()


def test_the_middle_of_every_run_of_the_default_candidates():
    timesteps = candidate_grid(1000)
    for first in range(20):
        for last in range(first, 20):
            curve = torch.tensor([float(first <= place <= last) for place in range(20)])
            if (first, last) != (0, 19):  # which is no run, but a constant
                assert int(plateau_centre(curve, timesteps, 0.2)) == (first + last + 1) // 2
    assert [int(plateau_centre(torch.ones(4), listed, 0.2)) for listed in ([0, 50, 60, 400], [0, 50, 340, 400])] == [2, 1]


def test_a_curve_that_is_highest_at_an_end_is_taken_there():
    timesteps, curve = [0, 40, 160, 360], torch.tensor([1, 0.99, 0.98, 0])
    assert [int(plateau_centre(own, timesteps, 0.2)) for own in (curve, curve.flip(0))] == [0, 3]
    level = torch.tensor([1, 1, 0.98, 0])  # at the end and beside it: the plateau is there to be seen
    assert [int(plateau_centre(own, timesteps, 0.05)) for own in (level, level.flip(0))] == [1, 2]
    assert plateau_centre(torch.stack([curve, level]), timesteps, 0.05).tolist() == [0, 1]


def test_a_plateau_is_a_share():
    for plateau in (-0.1, 1, 20):
        with pytest.raises(ValueError, match='a share of the range of the scores'):
            swept(Planted(), TensorImages(colours()), candidates=TIMES, plateau=plateau)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match='the sweep got no images'):
        swept(Planted(), TensorImages(colours(0)))


def test_a_feature_that_is_not_finite_is_named():
    class Broken(Planted):
        def features(self, latent, t, noise):
            feature, = super().features(latent, t, noise)
            return (torch.where((t == 400)[:, None, None, None], torch.nan, feature),)

    with pytest.raises(FloatingPointError, match=r"\(0, 'hidden'\) is not finite at t=400"):
        swept(Broken(), TensorImages(colours()), candidates=TIMES)


def test_a_score_that_is_not_finite_is_named(monkeypatch):
    from mmaselect.selection.scores.frequency import HighFrequencyRatio
    monkeypatch.setattr(HighFrequencyRatio, 'terms', lambda self, rows, total: (rows[:, :1] * torch.nan, rows[:, 1:]))
    with pytest.raises(FloatingPointError, match=r"'hfr' of \(0, 'hidden'\) at t=0"):
        swept(Planted(), TensorImages(colours()), candidates=TIMES, score='hfr')


def test_candidates():
    assert candidate_grid(1000, 5) == [0, 62, 250, 562, 999]
    assert candidate_grid(1000, 1) == [0] and candidate_grid(3, 20) == [0, 2] and candidate_grid(1, 5) == [0]
    grid = candidate_grid(1000)
    assert len(grid) == 20 and grid[0] == 0 and grid[-1] == 999
    gaps = [b - a for a, b in zip(grid, grid[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert resolve_candidates((300, 20), 1000) == [20, 300]


@pytest.mark.parametrize('candidates', [[], [0, 0], [-1], [1000], 0, True, '20', [1.5], ['a'], [True], 1.5, None])
def test_bad_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match='candidates must be'):
        resolve_candidates(candidates, 1000)


@pytest.mark.parametrize('name, value', [
    ('num_timesteps', '2'), ('num_timesteps', 1.5), ('num_timesteps', True), ('gap', None), ('gap', 0.5), ('forward_batch', 0),
    ('budget', 'all'), ('budget', -5), ('num_images', True), ('num_images', 0), ('image_size', 0), ('image_size', (3,)),
    ('image_size', (32, 0)), ('image_size', '32'), ('seed', None), ('seed', 1.5), ('plateau', 'wide'), ('plateau', None),
    ('plateau', float('nan')), ('controls', None), ('controls', 5)])
def test_an_option_of_another_kind_is_refused(name, value):
    with pytest.raises(ValueError, match=f'{name}( are some of .* not|=){" ?" + re.escape(repr(value))}'):
        SelectionPolicy(**{name: value})


def test_result_survives_json_and_draws_itself(tmp_path):
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES)
    result.save(tmp_path / 'r.json')
    assert SelectionResult.load(tmp_path / 'r.json') == result
    result.plot(tmp_path / 'r.png')
    assert (tmp_path / 'r.png').read_bytes().startswith(b'\x89PNG')
    assert sorted(os.listdir(tmp_path)) == ['r.json', 'r.png']
    assert result.table().count('>') == 1 and f'> {BEST:6d}' in result.table()
    (tmp_path / 'r.json').write_text('{"timestep": 3}')
    with pytest.raises(ValueError, match='is not a saved SelectionResult'):
        SelectionResult.load(tmp_path / 'r.json')


def test_infinite_log_snr_survives_json(tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler
    model = Planted()
    model.process = NoiseProcess.from_scheduler(FlowMatchEulerDiscreteScheduler())
    result = swept(model, TensorImages(colours()), candidates=[0, 999])
    result.save(tmp_path / 'r.json')
    assert SelectionResult.load(tmp_path / 'r.json').candidates[-1].log_snr == -float('inf')


def test_nothing_is_half_written(tmp_path, monkeypatch):
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES)
    result.save(tmp_path / 'r.json')
    monkeypatch.setattr('pathlib.Path.write_text', lambda self, text: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        result.save(tmp_path / 'r.json')
    monkeypatch.undo()
    assert SelectionResult.load(tmp_path / 'r.json') == result
    assert os.listdir(tmp_path) == ['r.json']


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='cannot write into .*file'):
        swept(Planted(), TensorImages(colours()), candidates=TIMES).save(tmp_path / 'file' / 'r.json')
