import os

import pytest
import tiny
import torch
import torch.multiprocessing
from planted import BEST, TIMES, Planted, colours, rank_of_two

from mmaselect.extract import NoiseProcess
from mmaselect.selection import SelectionResult, TensorImages, sweep
from mmaselect.selection.candidates import even, resolve
from mmaselect.selection.views import augment


def scores_of(result):
    return [c.score for c in result.candidates]


@pytest.mark.parametrize('score', ['hfr', 'view_consistency'])
def test_finds_the_planted_timestep(score):
    result = sweep(Planted(), TensorImages(colours()), candidates=TIMES, score=score)
    assert result.timestep == BEST
    assert not result.at_edge
    assert [c.timestep for c in result.candidates] == list(TIMES)


@pytest.mark.parametrize('score', ['hfr', 'view_consistency'])
def test_batch_sizes_change_nothing(score):
    results = [sweep(Planted(), TensorImages(colours(), batch_size=size), candidates=TIMES, score=score, forward_batch=forward)
               for size, forward in ((24, 64), (5, 64), (24, 1), (1, 7))]
    assert {r.timestep for r in results} == {BEST}
    for result in results[1:]:
        assert scores_of(result) == pytest.approx(scores_of(results[0]), rel=1e-5)


def test_the_order_of_the_images_changes_nothing():
    class Reversed(TensorImages):
        def batches(self, start, stop):
            return reversed(list(super().batches(start, stop)))

    results = [sweep(Planted(), kind(colours(), batch_size=1), candidates=TIMES) for kind in (TensorImages, Reversed)]
    assert scores_of(results[0]) == scores_of(results[1])


def test_twice_in_a_row_is_the_same_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    first = sweep(Planted(), TensorImages(colours()), candidates=TIMES)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    second = sweep(Planted(), TensorImages(colours()), candidates=TIMES)
    assert torch.equal(before, torch.get_rng_state())
    assert first.candidates == second.candidates
    assert scores_of(first) != scores_of(sweep(Planted(), TensorImages(colours()), candidates=TIMES, seed=1))


def test_two_ranks_share_the_work_and_agree(tmp_path):
    torch.multiprocessing.start_processes(rank_of_two, (str(tmp_path),), nprocs=2, start_method='spawn')
    alone = sweep(Planted(), TensorImages(colours(23), batch_size=4), candidates=TIMES)
    ranks = [SelectionResult.load(tmp_path / f'{rank}.json') for rank in (0, 1)]
    assert ranks[0].candidates == ranks[1].candidates
    assert {r.timestep for r in (alone, *ranks)} == {BEST}
    assert scores_of(ranks[0]) == pytest.approx(scores_of(alone), rel=1e-6)
    assert ranks[0].num_images == 23
    forwards = [torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in (0, 1)]
    assert forwards == [12 * 2 * len(TIMES), 11 * 2 * len(TIMES)]
    assert ranks[0].forwards == sum(forwards) == alone.forwards


def test_each_view_is_encoded_once_and_candidates_share_forward_passes():
    model = Planted()
    sweep(model, TensorImages(colours(8), batch_size=8), candidates=TIMES, forward_batch=32)
    assert [call for call in model.calls if call[0] == 'encode'] == [('encode', 8)] * 2
    assert [call for call in model.calls if call[0] == 'forward'] == [('forward', 32)] * 3 + [('forward', 16)]


def test_a_real_extractor_keeps_its_mode_and_weights():
    extractor = tiny.extractor([(0, 'query'), (-1, 'hidden')]).train()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    result = sweep(extractor, TensorImages(tiny.images(6), batch_size=3), candidates=5, score='hfr')
    assert extractor.training
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())
    assert all(len(c.tap_scores) == 2 and c.score == pytest.approx(sum(c.tap_scores) / 2) for c in result.candidates)


def test_one_candidate_is_chosen_and_no_edge():
    result = sweep(Planted(), TensorImages(colours()), candidates=[400])
    assert (result.timestep, result.at_edge) == (400, False)


def test_an_optimum_at_the_edge_is_said():
    result = sweep(Planted(), TensorImages(colours()), candidates=[BEST, 400, 999])
    assert result.at_edge and 'at the edge of the candidates, the low-noise end' in result.remarks[0]


def test_no_images_are_refused():
    with pytest.raises(ValueError, match='the sweep got no images'):
        sweep(Planted(), TensorImages(colours(0)))


def test_a_feature_that_is_not_finite_is_named():
    class Broken(Planted):
        def features(self, latent, t, noise):
            feature, = super().features(latent, t, noise)
            return (torch.where((t == 400)[:, None, None, None], torch.nan, feature),)

    with pytest.raises(FloatingPointError, match=r"\(0, 'hidden'\) is not finite at t=400"):
        sweep(Broken(), TensorImages(colours()), candidates=TIMES)


def test_a_score_that_is_not_finite_is_named(monkeypatch):
    from mmaselect.selection.scores.frequency import HighFrequencyRatio
    monkeypatch.setattr(HighFrequencyRatio, 'terms', lambda self, rows, total: (rows[:, :1] * torch.nan, rows[:, 1:]))
    with pytest.raises(FloatingPointError, match="'hfr' at t=0"):
        sweep(Planted(), TensorImages(colours()), candidates=TIMES, score='hfr')


def test_candidates():
    assert even(1000, 5) == [0, 62, 250, 562, 999]
    assert even(1000, 1) == [0] and even(3, 20) == [0, 2] and even(1, 5) == [0]
    grid = even(1000)
    assert len(grid) == 20 and grid[0] == 0 and grid[-1] == 999
    gaps = [b - a for a, b in zip(grid, grid[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert resolve((300, 20), 1000) == [20, 300]


@pytest.mark.parametrize('candidates', [[], [0, 0], [-1], [1000], 0])
def test_bad_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match='candidates must be'):
        resolve(candidates, 1000)


def test_augment_shifts_and_mirrors_by_its_generator_alone():
    image = tiny.images(1, 20, 40)[0]
    views = [augment(image, torch.Generator().manual_seed(seed)) for seed in (0, 0, *range(1, 30))]
    assert torch.equal(views[0], views[1])
    assert all(view.shape == image.shape for view in views)
    # Some view is the image moved down by one or two rows, some is its mirror image moved so.
    assert len({view.sum().item() for view in views}) > 10


def test_result_survives_json_and_draws_itself(tmp_path):
    result = sweep(Planted(), TensorImages(colours()), candidates=TIMES)
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
    result = sweep(model, TensorImages(colours()), candidates=[0, 999])
    result.save(tmp_path / 'r.json')
    assert SelectionResult.load(tmp_path / 'r.json').candidates[-1].log_snr == -float('inf')


def test_nothing_is_half_written(tmp_path, monkeypatch):
    result = sweep(Planted(), TensorImages(colours()), candidates=TIMES)
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
        sweep(Planted(), TensorImages(colours()), candidates=TIMES).save(tmp_path / 'file' / 'r.json')
