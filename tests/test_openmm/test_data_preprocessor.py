"""A data_preprocessor at the top of a config, as mmpretrain's have it, is that of the model for every tool."""
import copy

import pytest
import runs
import torch
from mmengine.config import Config

from mmaselect.openmm import launch, memory, vis

CLS = 'aselect_cub'


@pytest.fixture
def configs(data, tmp_path):
    """The paths of one config twice: with the data_preprocessor in the model, and at the top."""
    inside = runs.config(CLS, data, tmp_path, {'model.backbone.timestep': 40, 'model.data_preprocessor.mean': [20.0, 60.0, 90.0]})
    outside = copy.deepcopy(inside)
    outside.data_preprocessor = outside.model.pop('data_preprocessor')
    paths = [tmp_path / 'inside.py', tmp_path / 'outside.py']
    for cfg, path in zip((inside, outside), paths, strict=True):
        cfg.dump(path)
    return paths


def test_options_merge_it(configs):
    inside, outside = (launch.load_config(launch.parser('').parse_args([str(path)])) for path in configs)
    assert outside.model.data_preprocessor == inside.model.data_preprocessor
    assert outside.model.data_preprocessor.mean == [20.0, 60.0, 90.0]


def test_pictures_show_images_as_they_are_trained_on(configs):
    def images(path):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return vis.load_inputs(vis.parser('', out='x.png').parse_args([str(path), '--images', '2', '--timesteps', '40',
                                                                           '--device', 'cpu'])).images
    for own, other in zip(*map(images, configs), strict=True):
        assert torch.equal(own, other) and own.abs().max() > 1  # 255 is (255 - 20) / 127.5


@pytest.mark.skipif(runs.tiny.OLD_TORCH, reason='refused')
def test_memory_is_predicted_of_it(configs):
    inside, outside = (Config.fromfile(path) for path in configs)
    found, expected = (memory.predict(cfg, batch_size=1) for cfg in (outside, inside))
    assert (found.parameters, found.gradients, found.peak) == (expected.parameters, expected.gradients, expected.peak)
    assert 'data_preprocessor' not in outside.model
