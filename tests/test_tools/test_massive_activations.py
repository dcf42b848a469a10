"""The tool finds channels that are planted in a checkpoint, and what it prints goes into a config as it is."""
import ast
import json

import pytest
import runs
import torch

TOOL = runs.ROOT / 'tools' / 'analysis_tools' / 'massive_activations.py'
SEG = 'aselect_fashion_scenes'
FIXED = {'model.backbone.timestep': [40, 600], 'model.neck.selection.num_timesteps': 2,
         'model.decode_head.in_channels': [2 * runs.WIDTH] * 4}


@pytest.fixture(scope='module')
def checkpoint(data, tmp_path_factory):
    """A model whose residual stream has a massive channel 5 from block 1 on, and channel 9 from block 3 on."""
    folder = tmp_path_factory.mktemp('model')
    model = runs.runner(SEG, data, folder, {**FIXED, 'model.backbone.fold': False}).model
    blocks = model.backbone.extractor.family.model.transformer_blocks
    with torch.no_grad():
        for block, channel, size in ((1, 5, 1e5), (3, 9, 1e6)):
            blocks[block].norm1.linear.bias[5 * runs.WIDTH + channel] = 1  # the gate of the MLP
            blocks[block].norm1.linear.weight[5 * runs.WIDTH + channel] = 0
            blocks[block].ff.net[2].bias[channel] = size
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'planted.pth')
    return folder / 'planted.pth'


def test_planted_channels_are_reported(checkpoint, data, tmp_path):
    words = runs.words({**runs.options(SEG, data), **FIXED})
    printed = runs.run_here(TOOL, runs.CONFIGS[SEG], checkpoint, '--work-dir', tmp_path, '--images', 5, *words)
    record = json.loads((tmp_path / 'massive_activations.json').read_text())
    assert record['discard_channels'] == [[], [5], [5], [5, 9]] and record['images'] == 5 and record['factor'] == 50
    assert [(row['timestep'], row['tap']) for row in record['maps']] == [
        (t, f'{block}.hidden') for t in (40, 600) for block in range(4)]
    assert [list(row['channels']) for row in record['maps']] == 2 * [[], ['5'], ['5'], ['9', '5']]
    ratio, median = record['maps'][1]['channels']['5'], record['maps'][1]['median']
    assert ratio * median == pytest.approx(1e5, rel=0.01)
    assert '5 (' in printed and 'none' in printed
    given = ast.literal_eval(printed.strip().splitlines()[-1].removeprefix('discard_channels='))
    assert given == record['discard_channels']
    runner = runs.runner(SEG, data, tmp_path / 'run', {**FIXED, 'model.neck.discard_channels': given,
                                                       'load_from': str(checkpoint)})
    runner.test()
    device = next(runner.model.parameters()).device
    levels = runner.model.neck([torch.ones(1, runs.WIDTH, 4, 4, device=device)] * 8)
    assert len(levels) == 4


def test_the_timestep_is_chosen_first_where_it_is_open_and_the_factor_counts(data, tmp_path):
    words = runs.words({**runs.options(SEG, data), 'model.neck.selection.controls': []})
    runs.run_here(TOOL, runs.CONFIGS[SEG], '--work-dir', tmp_path, '--images', 2, '--factor', 1, *words)
    record = json.loads((tmp_path / 'massive_activations.json').read_text())
    chosen = json.loads((tmp_path / 'timestep_selection.json').read_text())['timestep']
    assert {row['timestep'] for row in record['maps']} == {chosen}
    assert [len(row['channels']) for row in record['maps']] == [runs.WIDTH // 2] * 4  # half of them exceed the median


def test_a_config_without_the_neck_is_refused(data, tmp_path, capsys):
    config = tmp_path / 'pooled.py'
    config.write_text(f"_base_ = ['{runs.CONFIGS['aselect_cub']}']\n"
                      "model = dict(neck=dict(_delete_=True, type='GlobalAveragePooling'))\n")
    options = {key: value for key, value in runs.options('aselect_cub', data).items() if not key.startswith('model.neck')}
    with pytest.raises(SystemExit):
        runs.run_here(TOOL, config, '--work-dir', tmp_path, *runs.words({**options, 'model.backbone.timestep': 40}))
    assert 'pooled.py has no DiTBackbone with an AutoTimestepNeck' in capsys.readouterr().err
