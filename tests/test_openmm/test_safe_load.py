"""A checkpoint is data: what MMEngine writes is read back, and code in a file is refused and does not run."""
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint

from mmaselect.openmm import safe_load


class Attack:
    """Runs a command when it is unpickled without care."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


class Reached:
    """Reaches a function through getattr, which the onedl fork allows, and asks for its globals."""

    def __reduce__(self):
        return getattr, (HistoryBuffer.update, '__globals__')


class Linear(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(inputs).square().mean()) if mode == 'loss' else self.layer(inputs)


@pytest.fixture(params=['weights_only', 'torch before 2.4'], autouse=True)
def reader(request, monkeypatch):
    safe_load.enable_safe_loading()
    if request.param != 'weights_only':
        monkeypatch.delattr(torch.serialization, 'add_safe_globals', raising=False)


@pytest.fixture
def checkpoint(tmp_path):
    """The path of a real training checkpoint, with optimizer state and loss history."""
    loader = dict(dataset=[dict(inputs=torch.tensor([1., 2.]))] * 4, batch_size=2, sampler=dict(type='DefaultSampler'),
                  collate_fn=dict(type='default_collate'))
    runner = Runner(Linear(), str(tmp_path), train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=1),
                    optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)), param_scheduler=dict(type='LinearLR'),
                    experiment_name=tmp_path.name)
    runner.train()
    runner.message_hub.update_info('best_score', np.float64(0.5))
    runner.save_checkpoint(str(tmp_path), 'best.pth', meta=dict(palette=np.array([[1, 2, 3]], np.uint8)))
    return tmp_path / 'best.pth'


def test_a_training_checkpoint_is_read_whole(checkpoint):
    found = CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu')
    expected = torch.load(checkpoint, weights_only=False)
    assert found['meta']['cfg'] == expected['meta']['cfg']
    np.testing.assert_array_equal(found['meta']['palette'], [[1, 2, 3]])
    assert found['message_hub']['runtime_info']['best_score'] == 0.5
    np.testing.assert_array_equal(found['message_hub']['log_scalars']['train/loss'].data[0],
                                  expected['message_hub']['log_scalars']['train/loss'].data[0])
    assert found['message_hub']['log_scalars']['train/loss'].statistics('mean') > 0
    torch.testing.assert_close(found['optimizer'], expected['optimizer'], rtol=0, atol=0)
    torch.testing.assert_close(dict(found['state_dict']), dict(expected['state_dict']), rtol=0, atol=0)


@pytest.mark.parametrize('save', [torch.save, lambda thing, path: pickle.dump(thing, path.open('wb'), 2),
                                  lambda thing, path: pickle.dump(thing, path.open('wb'))], ids=['zip', 'pickle', 'pickle4'])
def test_code_is_refused_and_not_run(tmp_path, save):
    path, flag = tmp_path / 'stranger.pth', tmp_path / 'ran'
    save(dict(state_dict={}, extra=Attack(flag)), path)
    with pytest.raises(safe_load.CheckpointError, match=r'stranger\.pth is (refused|cut off)'):
        load_checkpoint(Linear(), str(path))
    assert not flag.exists()
    assert torch.load is safe_load._torch_load


def test_the_refusal_names_what_and_the_remedy(tmp_path):
    torch.save(Attack(tmp_path / 'ran'), tmp_path / 'stranger.pth')
    with pytest.raises(safe_load.RefusedCheckpointError, match=r'holds \w+\.mkdir .*torch\.save\(model\.state_dict') as caught:
        load_checkpoint(Linear(), str(tmp_path / 'stranger.pth'))
    assert 'weights_only=False' not in str(caught.value)


def test_getattr_reaches_nothing(tmp_path):
    torch.save(Reached(), tmp_path / 'stranger.pth')
    with pytest.raises(safe_load.RefusedCheckpointError):
        load_checkpoint(Linear(), str(tmp_path / 'stranger.pth'))


def test_a_config_in_meta_is_not_handed_to_resume(tmp_path):
    torch.save(dict(meta=dict(config='raise SystemExit', cfg='a = 1')), tmp_path / 'stranger.pth')
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'stranger.pth'))['meta'] == dict(cfg='a = 1')


@pytest.mark.parametrize('keep', [0, 100, -100])
def test_a_cut_file_is_broken(checkpoint, keep):
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(safe_load.BrokenCheckpointError, match=r'best\.pth is cut off.*earlier'):
        safe_load.load(checkpoint, mmap=True)


def test_a_file_of_an_old_torch_is_read(tmp_path):
    torch.save(dict(w=torch.ones(2)), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    torch.testing.assert_close(safe_load.load(tmp_path / 'old.pth', mmap=True), dict(w=torch.ones(2)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent.pth'):
        load_checkpoint(Linear(), str(tmp_path / 'absent.pth'))


def test_the_users_own_allow_list_is_kept(tmp_path):
    if not hasattr(torch.serialization, 'add_safe_globals'):
        pytest.skip('torch before 2.4')
    torch.save(slice(1), tmp_path / 'own.pth')
    with pytest.raises(safe_load.RefusedCheckpointError):
        safe_load.load(tmp_path / 'own.pth')
    with torch.serialization.safe_globals([slice]):
        safe_load.load(tmp_path / 'own.pth')
        assert slice in torch.serialization.get_safe_globals()
        assert HistoryBuffer not in torch.serialization.get_safe_globals()
