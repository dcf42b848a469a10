"""What stands between a config file and a Runner, and the two tools as a user calls them."""
import argparse
import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import LocalBackend
from PIL import Image

from mmaselect.openmm import checkpoints, configs, console, launch, processes
from mmaselect.openmm.safe_load import BrokenCheckpointError, RefusedCheckpointError

TOOLS = runs.ROOT / 'tools'
SEGMENTOR = '''
default_scope = 'mmseg'
norm = dict(type='SyncBN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, size=(16, 16), seg_pad_val=255),
    backbone=dict(type='ResNetV1c', depth=18, base_channels=4, stem_channels=4, norm_cfg=norm),
    decode_head=dict(type='FCNHead', in_channels=32, in_index=3, channels=4, num_convs=1, num_classes=2, norm_cfg=norm),
    test_cfg=dict(mode='whole'))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(type='BaseSegDataset', data_root='data', img_suffix='.png', pipeline=pipeline,
               metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0], [255, 0, 0]]),
               data_prefix=dict(img_path='img', seg_map_path='ann'))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=True, dataset=dataset,
                        sampler=dict(type='InfiniteSampler', shuffle=True))
val_dataloader = dict(batch_size=2, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1),
                     visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(by_epoch=False)
'''
CLASSIFIER = '''
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier', data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, num_classes=2),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=32, num_classes=2, topk=(1, )))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                        dataset=dict(type='CustomDataset', data_root='data/classes', pipeline=pipeline))
val_dataloader = train_dataloader
test_dataloader = train_dataloader
val_evaluator = dict(type='Accuracy')
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(visualization=dict(type='VisualizationHook'))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
'''


def arguments(*words):
    return launch.parser('').parse_args(words)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with the two configs and four tiny images for both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('RANK', raising=False)
    Path('seg.py').write_text(SEGMENTOR)
    Path('cls.py').write_text(CLASSIFIER)
    rng = np.random.default_rng(0)
    for k in range(4):
        image = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8))
        for path in (f'data/img/{k}.png', f'data/classes/{k % 2}/{k}.png'):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        Path('data/ann').mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 2, (16, 16), np.uint8)).save(f'data/ann/{k}.png')
    return tmp_path


@pytest.fixture
def call(folder):
    """Runs a tool in this process and gives what it printed."""
    return lambda tool, *words: runs.run_here(TOOLS / tool, *words)


# Configs and options


def test_work_dir_comes_from_the_option_then_the_config_then_its_name(folder):
    assert launch.load_config(arguments('seg.py', '--work-dir', 'a')).work_dir == 'a'
    assert launch.load_config(arguments('seg.py', '--cfg-options', 'work_dir=b')).work_dir == 'b'
    assert launch.load_config(arguments('seg.py')).work_dir == './work_dirs/seg'


def test_a_config_of_no_toolbox_is_refused(folder):
    Path('none.py').write_text('model = dict()')
    with pytest.raises(ValueError, match='default_scope.*mmseg.*mmpretrain'):
        launch.load_config(arguments('none.py'))


def test_dataloaders_get_what_the_toolbox_and_the_machine_need(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    options = ('--cfg-options', 'val_dataloader.num_workers=1')
    seg, cls = (launch.load_config(arguments(name, *options)) for name in ('seg.py', 'cls.py'))
    assert 'collate_fn' not in seg.train_dataloader and not seg.train_dataloader.get('pin_memory')
    assert seg.train_dataloader.persistent_workers is False  # no workers
    assert cls.train_dataloader.collate_fn.type == 'default_collate'
    assert cls.train_dataloader.pin_memory and not cls.train_dataloader.persistent_workers
    assert cls.val_dataloader.persistent_workers
    cls = launch.load_config(arguments('cls.py', '--no-pin-memory', '--no-persistent-workers', *options))
    assert not cls.val_dataloader.pin_memory and not cls.val_dataloader.persistent_workers
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert not launch.load_config(arguments('cls.py')).train_dataloader.pin_memory


DIT, NECK = dict(type='mmaselect.DiTBackbone'), dict(type='mmaselect.AutoTimestepNeck')


@pytest.mark.parametrize('model', [
    dict(backbone=DIT, neck=NECK), dict(backbone=DIT, neck=[dict(type='GlobalAveragePooling'), NECK]),
    dict(type='SegTTAModel', module=dict(backbone=dict(type='DiTBackbone'), neck=dict(type='AutoTimestepNeck')))])
@pytest.mark.parametrize('hooks', [None, [], [dict(type='EMAHook')]])
def test_the_forgotten_hook_is_added_once(model, hooks):
    cfg = Config(dict(model=model, custom_hooks=hooks))
    configs.add_forgotten_hook(cfg)
    configs.add_forgotten_hook(cfg)
    assert cfg.custom_hooks == [*(hooks or []), dict(type='mmaselect.AutoTimestepHook')]


def test_no_hook_is_added_where_none_is_needed():
    for cfg in (Config(dict(model=dict(backbone=DIT, neck=dict(type='FPN')))),
                Config(dict(model=dict(backbone=dict(type='mmpretrain.VisionTransformer'), neck=NECK))),
                Config(dict(model=dict(backbone=DIT, neck=NECK), custom_hooks=[dict(type='AutoTimestepHook', reselect=True)]))):
        before = cfg.get('custom_hooks')
        configs.add_forgotten_hook(cfg)
        assert cfg.get('custom_hooks') == before


@pytest.mark.parametrize('path', ['file', 'file/below', '/proc/no'])
def test_a_work_dir_that_cannot_be_written_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path('file').touch()
    with pytest.raises(OSError, match=f'{path} cannot be written .*--work-dir'):
        checkpoints.check_writable(path)


# Checkpoints of a run that was killed


def save(path, time, **extra):
    torch.save(dict(meta={}, state_dict=dict(w=torch.zeros(1000)), message_hub={}) | extra, path)
    os.utime(path, (time, time))


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert checkpoints.latest_checkpoint(tmp_path) is None
    assert checkpoints.latest_checkpoint(tmp_path / 'absent') is None
    for number in (800, 900, 1000):
        save(tmp_path / f'iter_{number}.pth', number)
    save(tmp_path / 'best_mIoU_iter_1100.pth', 1100)
    torch.save(dict(state_dict={}), tmp_path / 'weights_1200.pth')
    assert checkpoints.latest_checkpoint(tmp_path) == str(tmp_path / 'iter_1000.pth')
    for cut, expected in (('iter_1000.pth', 'iter_900.pth'), ('iter_900.pth', 'iter_800.pth')):
        os.truncate(tmp_path / cut, 2000)
        assert checkpoints.latest_checkpoint(tmp_path) == str(tmp_path / expected)
    os.truncate(tmp_path / 'iter_800.pth', 0)
    assert checkpoints.latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize('content', ['', '\0\0\0', 'elsewhere/iter_7.pth', '{0}/iter_99.pth', '{0}/iter_8.pth'])
def test_last_checkpoint_may_be_empty_stale_or_dangling(tmp_path, content):
    save(tmp_path / 'iter_8.pth', 8)
    save(tmp_path / 'iter_16.pth', 16)
    (tmp_path / 'last_checkpoint').write_text(content.format(tmp_path))
    assert checkpoints.latest_checkpoint(tmp_path) == str(tmp_path / 'iter_16.pth')


def test_a_copied_folder_is_resumed_from_the_named_checkpoint(tmp_path):
    save(tmp_path / 'iter_16.pth', 1)
    save(tmp_path / 'iter_8.pth', 2)  # copied later
    (tmp_path / 'last_checkpoint').write_text('/old/place/iter_16.pth')
    assert checkpoints.latest_checkpoint(tmp_path) == str(tmp_path / 'iter_16.pth')


def test_checkpoints_kept_elsewhere_are_found(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'run').mkdir()
    save(tmp_path / 'out' / 'epoch_1.pth', 1)
    save(tmp_path / 'out' / 'epoch_2.pth', 2)
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(tmp_path / 'out' / 'epoch_2.pth'))
    assert checkpoints.latest_checkpoint(tmp_path / 'run') == str(tmp_path / 'out' / 'epoch_2.pth')
    os.truncate(tmp_path / 'out' / 'epoch_2.pth', 2000)
    assert checkpoints.latest_checkpoint(tmp_path / 'run') == str(tmp_path / 'out' / 'epoch_1.pth')


def test_a_checkpoint_with_code_stops_the_resumption(tmp_path):
    save(tmp_path / 'iter_8.pth', 8)
    save(tmp_path / 'iter_16.pth', 16, extra=argparse.Namespace())
    with pytest.raises(RefusedCheckpointError, match='iter_16.pth is refused: it holds argparse.Namespace'):
        checkpoints.latest_checkpoint(tmp_path)


def test_a_named_checkpoint_that_is_broken_is_an_error(tmp_path):
    save(tmp_path / 'iter_8.pth', 8)
    checkpoints.check_checkpoint(str(tmp_path / 'iter_8.pth'))
    checkpoints.check_checkpoint('https://example.org/not_fetched.pth')
    os.truncate(tmp_path / 'iter_8.pth', 2000)
    with pytest.raises(BrokenCheckpointError, match='iter_8.pth'):
        checkpoints.check_checkpoint(str(tmp_path / 'iter_8.pth'))


# Several processes


def test_one_process_is_left_alone():
    cfg = Config(dict(launcher='none', model=dict(norm_cfg=dict(type='SyncBN'))))
    processes.join_cpu_processes(cfg)
    assert 'model_wrapper_cfg' not in cfg and cfg.model.norm_cfg.type == 'SyncBN'


@pytest.mark.parametrize('launcher', console.LAUNCHERS)
def test_processes_on_cpus_join_by_gloo(launcher, monkeypatch):
    monkeypatch.setattr(processes, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(os, 'environ', dict(os.environ, MASTER_PORT='1', MASTER_ADDR='127.0.0.1', OMP_NUM_THREADS='1'))
    os.environ.update(dict(zip(console.LAUNCHERS[launcher], '1212', strict=True)))
    joined = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, timeout: joined.append((backend, timeout)))
    cfg = Config(dict(launcher=launcher, find_unused_parameters=True, env_cfg=dict(dist_cfg=dict(timeout=60)), model=dict(
        backbone=dict(norm_cfg=dict(type='SyncBN')), heads=[dict(norm_cfg=dict(type='MMSyncBN', eps=1)), dict(norm_cfg=None)])))
    processes.join_cpu_processes(cfg)
    assert [(backend, timeout.total_seconds()) for backend, timeout in joined] == [('gloo', 60)]
    assert [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')] == ['1', '2', '1']
    assert cfg.model_wrapper_cfg == dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                                         find_unused_parameters=True)
    assert cfg.model.backbone.norm_cfg.type == 'BN' and cfg.model.heads[0].norm_cfg == dict(type='BN', eps=1)


def test_a_launcher_that_did_not_launch_is_named(monkeypatch):
    monkeypatch.setattr(processes, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(os, 'environ', {})
    with pytest.raises(ValueError, match='slurm needs SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID .*tools/slurm'):
        processes.join_cpu_processes(Config(dict(launcher='slurm')))


def test_type_names():
    assert [configs.type_name(ConfigDict(type=kind)) for kind in ('a.B', 'B', None, dict)] == ['B', 'B', '', 'dict']


# The tools


def test_a_segmentor_is_trained_resumed_and_tested(call):
    said = call('train.py', 'seg.py')
    assert 'last evaluation: aAcc' in said and 'max_keep_ckpts is 2' in said
    os.truncate('work_dirs/seg/iter_4.pth', 2000)
    Path('work_dirs/seg/last_checkpoint').write_text('')
    said = call('train.py', 'seg.py', '--resume', '--no-validate', '--cfg-options', 'train_cfg.max_iters=6')
    assert 'skipped a checkpoint: work_dirs/seg/iter_4.pth' in said and 'resumed epoch: 0, iter: 2' in said
    assert 'Iter(val)' not in said
    said = call('test.py', 'seg.py', 'work_dirs/seg/iter_6.pth', '--out', 'masks', '--show-dir', 'shown')
    assert 'mIoU: ' in said
    assert sorted(path.name for path in Path('masks').iterdir()) == ['0.png', '1.png', '2.png', '3.png']
    assert len(list(Path('shown').rglob('*.png'))) == 4


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(call, monkeypatch, capsys):
    put = LocalBackend.put

    def full(self, content, path):
        if str(path).endswith('iter_4.pth'):
            Path(path).write_bytes(content[:len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, content, path)

    monkeypatch.setattr(LocalBackend, 'put', full)
    with pytest.raises(SystemExit) as ended:
        call('train.py', 'seg.py')
    said = capsys.readouterr().err
    assert ended.value.code == 1 and 'is full' in said and 'iter_2.pth is whole. Free some space and go on with --resume' in said
    with pytest.raises(SystemExit):
        call('train.py', 'seg.py', '--work-dir', 'other', '--cfg-options', 'default_hooks.checkpoint.interval=4')
    assert 'no whole checkpoint was written before' in capsys.readouterr().err
    monkeypatch.setattr(LocalBackend, 'put', put)
    said = call('train.py', 'seg.py', '--resume')
    assert 'skipped a checkpoint: work_dirs/seg/iter_4.pth' in said and 'resumed epoch: 0, iter: 2' in said
    checkpoints.check_checkpoint('work_dirs/seg/iter_4.pth')


def test_a_classifier_is_trained_and_tested(call):
    assert 'Scaling the original LR by 0.5' in call('train.py', 'cls.py', '--auto-scale-lr')
    checkpoint = 'work_dirs/cls/epoch_1.pth'
    call('test.py', 'cls.py', checkpoint, '--out', 'out.pkl', '--show-dir', 'shown', '--interval', '2')
    assert len(pickle.loads(Path('out.pkl').read_bytes())) == 4
    assert len(list(Path('shown').iterdir())) == 2
    call('test.py', 'cls.py', checkpoint, '--tta', '--out', 'out.json', '--out-item', 'metrics')
    logged = ''.join(path.read_text() for path in Path('work_dirs').rglob('*.log'))
    assert 'AverageClsScoreTTA' in logged and 'accuracy/top1' in Path('out.json').read_text()


@pytest.mark.parametrize(('words', 'error'), [
    (('train.py', 'absent.py'), 'absent.py'),
    (('train.py', 'seg.py', '--work-dir', 'seg.py'), 'seg.py cannot be written'),
    (('train.py', 'seg.py', '--resume', 'absent.pth'), 'absent.pth'),
    (('train.py', 'seg.py', '--auto-scale-lr'), 'base_batch_size'),
    (('test.py', 'seg.py', 'seg.py', '--interval', '2'), '--interval is for mmpretrain configs'),
    (('test.py', 'seg.py', 'seg.py', '--out-item', 'pred'), '--out-item is for mmpretrain configs'),
    (('test.py', 'cls.py', 'cls.py', '--out-item', 'pred'), '--out-item needs --out'),
    (('test.py', 'cls.py', 'cls.py', '--tta', '--show'), 'leave out one'),
    (('test.py', 'cls.py', 'cls.py', '--out', 'a.txt'), 'a.txt: pred is written to a file that ends in .pkl'),
    (('test.py', 'cls.py', 'cls.py'), 'cls.py is cut off, damaged or no checkpoint')])
def test_bad_input_is_one_clear_error(call, capsys, words, error):
    with pytest.raises(SystemExit):
        call(*words)
    assert error in capsys.readouterr().err.splitlines()[-1]
    assert not Path('work_dirs').exists()
