"""The programs of ``make bench`` run, check that the contenders do the same, and write whole rows. Never a time."""
import json
import sys
from pathlib import Path

import hungry
import pytest
import runs
import tiny
import torch

sys.path.insert(0, str(runs.ROOT / 'benchmarks'))
import forward
import growth
import sweep
import timing
import training
from contenders import Setting, build
from torch.utils.flop_counter import FlopCounterMode

TIMES = {'name', 'arch', 'device', 'dtype', 'median_ms', 'min_ms', 'max_ms', 'rounds'}
FORWARD = TIMES | {'tap', 'batch', 'tokens', 'attention', 'ratio_to_limit', 'ratio_to_diffusers', 'ratio_to_by_hand',
                   'parameters', 'peak_mib'}


def quick(program, tmp_path, capsys, *options):
    """The rows that a program writes; each must be in the table that it prints."""
    runs.forget()  # the scope of another test's model
    program.main(['--quick', '--device', 'cpu', '--out', str(tmp_path / 'rows.json'), *options])
    written = json.loads((tmp_path / 'rows.json').read_text())
    assert {'command', 'commit', 'machine', 'cores', 'threads', 'torch', 'diffusers'} < written.keys()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    assert len(lines) == 2 + len(written['rows']) and len({line.count('|') for line in lines}) == 1
    for row in written['rows']:
        assert row['rounds'] == 0 or 0 < row['min_ms'] <= row['median_ms'] <= row['max_ms']
    return written['rows']


@pytest.mark.slow
@pytest.mark.skipif(tiny.OLD_TORCH, reason='one contender is compiled')
def test_forward(tmp_path, capsys):
    rows = quick(forward, tmp_path, capsys)
    assert all(row.keys() == FORWARD for row in rows)
    assert {(row['tap'], row['batch'], row['name']) for row in rows} == {
        (tap, batch, name) for tap in ('3.hidden', '1.hidden', '1.query') for batch in (1, 2) for name in forward.CONTENDERS}
    parameters = {(row['tap'], row['name']): row['parameters'] for row in rows}
    assert parameters['1.query', 'folded'] < parameters['1.hidden', 'folded'] < parameters['3.hidden', 'folded']
    assert parameters['1.query', 'unfolded'] == parameters['3.hidden', 'diffusers, hooks'] > parameters['3.hidden', 'timm ViT']
    assert all(row['ratio_to_limit'] == 1 for row in rows if row['name'] == 'matrix products')


def test_what_was_not_run_is_said_to_be_not_measured(tmp_path, capsys):
    rows = quick(forward, tmp_path, capsys, '--contenders', 'folded', '--batches', '1', '--tokens', '4')
    assert [row['ratio_to_limit'] for row in rows] == [None] * 3
    assert forward.report(rows).count('| not measured | not measured | not measured | 0.0 | not measured |') == 3


def test_forward_refuses_contenders_that_differ():
    features = {'unfolded': torch.ones(1, 4, 2, 2), 'folded': torch.ones(1, 4, 2, 2) + 1e-3}
    with pytest.raises(AssertionError, match="'folded' are off by 0.001"):
        forward.check(features, 'float32')


@pytest.mark.parametrize('tap', ['query', 'hidden'])
def test_the_limit_does_the_products_of_the_folded_blocks(tap):
    """As torch counts them: as many in all, and the same attentions."""
    counts = []
    for name in (forward.LIMIT, 'folded'):
        run, _ = build(name, Setting('tiny', 64, 2, tap, 2))
        with FlopCounterMode(display=False) as counter:
            run()
        counts.append({str(key): value for key, value in counter.get_flop_counts()['Global'].items()})
    limit, ours = counts
    assert sum(limit.values()) == sum(ours.values())
    linear = 2 * 64 * 16 * (16 + (16 if tap == 'query' else 12 * 16) + 2 * 12 * 16)  # the patches, the tap's block, two before
    assert limit.pop('aten.mm') == 2 * linear
    assert limit == {key: value for key, value in ours.items() if 'attention' in key}


def test_training(tmp_path, capsys):
    rows = quick(training, tmp_path, capsys)
    assert [(row['mode'], row['name']) for row in rows] == [
        (mode, name) for mode in training.MODES for name in (training.PEER, training.CACHED, training.WITH_VAE)]
    assert all(row.keys() - TIMES == {'mode', 'tap', 'batch', 'tokens', 'ratio_to_mmpretrain', 'vae_share', 'parameters',
                                      'trained_parameters', 'peak_mib'} for row in rows)
    head = training.CLASSES * (16 + 1)
    trained = {(row['mode'], row['name']): row['trained_parameters'] for row in rows}
    assert {trained['frozen', name] for name in (training.PEER, training.CACHED, training.WITH_VAE)} == {head}
    assert head < trained['fine-tuned', training.CACHED] == trained['fine-tuned', training.WITH_VAE]


def test_sweep_chooses_the_same_as_a_naive_one_on_one_and_two_processes(tmp_path, capsys):
    # Near pure noise, the rounding of torch 2.1 moves a score by leading components further than contenders may differ.
    score, views = ('hfr', 1) if tiny.OLD_TORCH else ('view_consistency', 2)
    rows = quick(sweep, tmp_path, capsys, '--score', score)  # which asserts it
    assert [(row['name'], row['processes'], row['forwards']) for row in rows] == [
        (name, processes, 3 * 12 * views) for name, processes in sweep.CONTENDERS.items()]
    assert len({row['timestep'] for row in rows}) == 1
    assert {'tap', 'tokens', 'images', 'candidates', 'score', 'ratio_to_naive', 'speedup'} < rows[0].keys()
    found = dict(timestep=3, scores=[0.1, 0.5])
    with pytest.raises(AssertionError, match='ours chose 3, naive 4'):
        sweep.agree(dict(naive=dict(found, timestep=4), ours=found), 1e-3)
    with pytest.raises(AssertionError, match="ours's scores are off by 0.1"):
        sweep.agree(dict(naive=dict(found, scores=[0.2, 0.5]), ours=found), 1e-3)


def test_growth(tmp_path, capsys):
    rows = quick(growth, tmp_path, capsys)
    assert [(row['name'], row['n']) for row in rows] == [
        ('tokens', 4), ('tokens', 16), ('candidates', 2), ('candidates', 4), ('images', 2), ('images', 4)]
    assert growth.exponent([2, 4, 8], [3 * n**1.5 for n in (2, 4, 8)]) == pytest.approx(1.5)


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='not Linux')
@pytest.mark.parametrize('backend', timing.ATTENTION)
def test_every_backend_of_attention_can_be_asked_for(backend):
    query = torch.randn(1, 1, 4, 8)
    try:
        with timing.attention(backend):
            found = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    except RuntimeError as error:  # not on every device
        assert 'kernel' in str(error) and backend not in ('any', 'math')
    else:
        torch.testing.assert_close(found, (query @ query.mT / 8**0.5).softmax(-1) @ query)


def test_the_peak_is_what_is_held_and_what_a_call_needs():
    assert timing.peak_mib('cpu', hungry.allocating, 100, 60) == pytest.approx(160, abs=8)
    assert timing.peak_mib('cpu', hungry.allocating, 100, 10) == pytest.approx(110, abs=8)


def test_rounds_take_turns_and_go_on_while_there_is_time():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in 'ab'}
    times = timing.rounds(contenders, 'cpu', repeats=2, seconds=0)
    assert ''.join(calls) == 'ababab' and [len(own) for own in times.values()] == [2, 2]  # the first is to warm up
    assert len(timing.rounds(contenders, 'cpu', repeats=2, seconds=60)['a']) == 2 * timing.MOST
