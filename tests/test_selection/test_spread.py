"""Several timesteps at once: the best that lie a gap apart."""
import itertools
import json
from dataclasses import replace

import pytest
import torch
from planted import BEST, TIMES, TWO_TAPS, Planted, colours, swept

from mmaselect.selection import SelectionResult, TensorImages
from mmaselect.selection.candidates import candidate_grid
from mmaselect.selection.choice import spaced_capacity, spaced_timesteps


@pytest.mark.parametrize('count, gap, chosen', [
    (1, 100, (200,)),
    (2, 100, (200, 90)),     # 130 and 150 are better and too near
    (3, 100, (200, 90, 400)),
    (2, 110, (200, 90)),     # exactly a gap
    (2, 111, (200, 400)),    # one more than lies between
    (3, 40, (200, 150, 90)),
    (3, 1, (200, 150, 130)),
])
def test_the_best_with_a_gap(count, gap, chosen):
    assert spaced_timesteps([0, 90, 130, 150, 200, 400], [1, 5, 6, 7, 9, 4], count, gap) == chosen


def test_of_equal_scores_the_cleanest_comes_first():
    assert spaced_timesteps([0, 100, 200, 300], [1, 2, 2, 2], 3, 100) == (100, 200, 300)
    assert spaced_timesteps([0, 100, 200, 300], [1, 1, 1, 1], 2, 150) == (0, 200)


def test_the_best_is_passed_over_only_where_nothing_fits_beside_it():
    assert spaced_timesteps([0, 60, 100], [1, 9, 2], 2, 100) == (100, 0)
    assert spaced_timesteps([0, 60, 100, 160], [1, 9, 2, 0], 2, 100) == (60, 160)


@pytest.mark.parametrize('seed', range(8))
def test_room_and_choice_against_exhaustive_search(seed):
    generator = torch.Generator().manual_seed(seed)
    times = sorted(torch.randperm(60, generator=generator)[:9].tolist())
    scores = torch.rand(9, generator=generator).tolist()
    gap = 5 + 2 * seed

    def apart(chosen):
        return all(b - a >= gap for a, b in itertools.pairwise(sorted(chosen)))

    sets = [chosen for count in range(1, 10) for chosen in itertools.combinations(times, count) if apart(chosen)]
    most = max(map(len, sets))
    assert spaced_capacity(times, (), gap) == most
    for t in times:
        assert spaced_capacity(times, (t,), gap) == max(len(chosen) for chosen in sets if t in chosen)
    for count in range(1, most + 1):
        # Of all sets of this size the one whose best is best, then whose second best is, and so on: what greed comes to.
        ranked = max(sorted((scores[times.index(t)] for t in chosen), reverse=True) for chosen in sets if len(chosen) == count)
        assert [scores[times.index(t)] for t in spaced_timesteps(times, scores, count, gap)] == ranked
    with pytest.raises(ValueError, match=f'of which {most} would'):
        spaced_timesteps(times, scores, most + 1, gap)


def test_the_defaults_leave_room_for_eight():
    """Such as 0, 100, 224, 335, 468, 623, 800, 999."""
    assert spaced_capacity(candidate_grid(1000), (), 100) == 8


def test_a_sweep_takes_the_best_few():
    """Planted richness falls with the distance from t=130: 90 and 200 are next and too near, then come 40 and 400."""
    options = dict(candidates=TIMES, score='view_consistency')
    result = swept(Planted(), TensorImages(colours()), num_timesteps=2, gap=90, **options)
    alone = swept(Planted(), TensorImages(colours()), **options)
    scores = {c.timestep: c.score for c in result.candidates}
    assert result.timesteps == (BEST, 40) and scores[90] > scores[40] and scores[200] > scores[40]
    assert result.timestep == alone.timestep == BEST and alone.timesteps == (BEST,)
    assert result.candidates == alone.candidates
    assert (result.interval, result.probability) == (alone.interval, alone.probability)  # of the first


def test_with_a_tap_further_timesteps_are_the_best_of_that_tap():
    """The first tap is richest at 40, the second, which is chosen, at 200 and next to it at 130."""
    result = swept(Planted(TWO_TAPS), TensorImages(colours()), candidates=TIMES, choose_tap=True, num_timesteps=2, gap=50)
    assert result.tap == (1, 'hidden') and result.timesteps == (200, BEST)
    first, second = next(c.tap_scores for c in result.candidates if c.timestep == 40)
    assert first > second


def test_controls_and_finer_steps_are_about_the_first():
    options = dict(candidates=[0, 100, 400, 999], budget=1000, controls=('noise',), noise='random', plateau=0)
    result, alone = (swept(Planted(), TensorImages(colours(8)), num_timesteps=n, **options) for n in (3, 1))
    assert result.timestep == alone.timestep and abs(result.timestep - BEST) <= 2
    assert result.controls == alone.controls and result.candidates == alone.candidates
    assert len(result.timesteps) == 3 and all(abs(a - b) >= 100 for a, b in itertools.combinations(result.timesteps, 2))


def test_what_does_not_fit_is_refused_before_the_work():
    model = Planted()
    with pytest.raises(ValueError, match=r'4 timesteps at least 300 apart do not fit .*\[0, 40.*of which 3 would'):
        swept(model, TensorImages(colours()), candidates=TIMES, num_timesteps=4, gap=300)
    for options in (dict(num_timesteps=0), dict(gap=0)):
        with pytest.raises(ValueError, match='=0: an integer, 1 or more'):
            swept(model, TensorImages(colours()), candidates=TIMES, **options)
    assert not model.calls


def test_the_record_names_all_of_them(tmp_path):
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES, num_timesteps=3)
    first, second, third = result.timesteps
    assert f'selected timestep t={BEST} and then {second}, {third} (sigma' in result.summary()
    marks = {int(line[1:].split()[0]): line[0] for line in result.table().splitlines()[1:]}
    assert {t: mark for t, mark in marks.items() if mark != ' '} == {first: '>', second: '+', third: '+'}
    axis, = result.figure().axes
    drawn = {line.get_label(): line.get_xdata()[0] for line in axis.lines if line.get_label().startswith('t = ')}
    assert drawn == {f't = {t}': t for t in result.timesteps}
    result.save(tmp_path / 'r.json')
    assert SelectionResult.load(tmp_path / 'r.json') == result
    data = json.loads((tmp_path / 'r.json').read_text())
    assert data['timesteps'] == list(result.timesteps) and data['timestep'] == first


def test_a_record_from_when_there_was_one_timestep_loads(tmp_path):
    result = swept(Planted(), TensorImages(colours()), candidates=TIMES)
    result.save(tmp_path / 'r.json')
    data = json.loads((tmp_path / 'r.json').read_text())
    for later in ('timesteps', 'noise', 'noise_seed', 'policy'):
        del data[later]
    (tmp_path / 'r.json').write_text(json.dumps(data))
    assert SelectionResult.load(tmp_path / 'r.json') == replace(result, noise='random', policy=dict(plateau=0))
