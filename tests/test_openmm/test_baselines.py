"""Every baseline config fits together as shipped, differs from ours in the backbone alone, and runs a step on tiny data."""
import copy
import functools
import importlib
import math

import layouts
import numpy as np
import pytest
import runs
import torch
from marks import quick
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmaselect.openmm.safe_load import load

BASELINES = {path.stem: path for path in sorted((runs.ROOT / 'configs' / 'baselines').glob('*.py'))}
PRETRAINING = BASELINES.pop('mae_vit_fashion_pretrain')
PHOTOGRAPHS = BASELINES.pop('mae_vit_cifar10_pretrain')
PUBLISH = runs.ROOT / 'tools' / 'model_converters' / 'publish_backbone.py'
FINE_TUNED = ('resnet50_cub', 'vit_b16_cub')  # with a schedule of their own
FROM_NOTHING = ('resnet18_cifar10', 'resnet18_cifar10_few')  # with augmentation and a schedule of their own
SIZES = {'ade20k': 512, 'cub': 512, 'cifar10': 32}  # of the crops; the demo's images have 64 pixels
CLASSES = {'ade20k': 150, 'fashion_scenes': 11, 'camvid': 11, 'cub': 200, 'fashion_mnist': 10, 'cifar10': 10}


@functools.cache
def shipped(name):
    """A config as it is. Not to be changed: parsing takes long, so it is done once."""
    return Config.fromfile(runs.ROOT / 'configs' / 'baselines' / f'{name}.py')


@pytest.fixture
def agreement(monkeypatch):
    """tools/compare.py"""
    monkeypatch.syspath_prepend(str(runs.ROOT / 'tools'))
    return importlib.import_module('compare')


def dataset(name):
    return next(known for known in CLASSES if name.removesuffix('_few').endswith(known))


def segments(name):
    return runs.segments(f'aselect_{dataset(name)}')


def tiny_backbone(name):
    """ResNet-18 in place of 50 and a ViT of width 16 in place of ViT-B; the demo's models are small as they are."""
    width, head = ((64, 128, 256, 512) if 'resnet' in name else (16,) * 4), {}
    if dataset(name) == 'ade20k':
        head = {'model.decode_head.in_channels': list(width), 'model.decode_head.channels': 8,
                'model.auxiliary_head.in_channels': width[2], 'model.auxiliary_head.channels': 8}
    if dataset(name) == 'cub':
        head = {'model.head.in_channels': width[3]}
    if name == 'resnet50_linear_cub':
        head['model.neck.1.input_features'] = width[3]
    if name == 'vit_b16_linear_cub':
        head['model.neck.input_features'] = width[3]
    if name == 'vit_b16_ade20k':
        head['model.neck.embed_dim'] = width[3]
    if 'resnet50' in name:
        return {**head, 'model.backbone.depth': 18, 'model.backbone.init_cfg': None}
    if 'vit_b16' in name:
        arch = dict(_delete_=True, embed_dims=16, num_layers=12, num_heads=2, feedforward_channels=32)
        return {**head, 'model.backbone.arch': arch, 'model.backbone.img_size': 32, 'model.backbone.init_cfg': None}
    return {}


def tiny_fusion(name):
    """The channels of a head over the tiny DiT where several timesteps are fused."""
    width = 3 * runs.WIDTH if 'concat' in name else runs.WIDTH
    if segments(name):
        return {'model.decode_head.in_channels': [width] * 4}
    return {'model.head.in_channels': width * runs.GRID**2}


def tiny(name, data, changes=()):
    """What makes a baseline run on the data below ``data`` in a second."""
    ours = runs.options(f'aselect_{dataset(name)}', data)
    if name.startswith('dit'):
        ours.update(tiny_fusion(name))
    else:
        ours = {key: value for key, value in ours.items()
                if not key.startswith('model.') or key.startswith(('model.data_preprocessor', 'model.test_cfg'))}
    step = ({'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1} if segments(name)
            else {'train_dataloader.batch_size': 12})
    if name in FROM_NOTHING:  # by iterations
        ours = {key: value for key, value in ours.items() if key != 'train_cfg.max_epochs'}
        step = {'train_dataloader.batch_size': 12, 'train_cfg.max_iters': 1}
    return {**ours, **step, **tiny_backbone(name), **dict(changes)}


def trained(path, options, work_dir):
    """The Runner of a config after its training."""
    runs.forget()
    cfg = copy.deepcopy(shipped(path.stem))
    cfg.merge_from_dict(options)
    cfg.work_dir = str(work_dir)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('name', BASELINES)
def test_differs_from_ours_in_the_backbone_alone(name, agreement):
    ours, theirs = runs.shipped(f'aselect_{dataset(name)}'), shipped(name)
    found = {path.split('.')[0] for path, *_ in agreement.differences(ours, theirs)}
    assert found == ({'optim_wrapper', 'param_scheduler'} if name in FINE_TUNED else
                     {'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'} if name in FROM_NOTHING else set())
    if ours.model.backbone.type != theirs.model.backbone.type:
        assert 'mmaselect' not in theirs.model.backbone.type and theirs.custom_hooks == []


@pytest.mark.parametrize('name', BASELINES)
def test_parts_fit_as_shipped(name):
    """Shapes alone, on a device without memory: a ViT-B takes no time there. fashion_dit has its noise on the CPU."""
    cfg = copy.deepcopy(shipped(name))
    init_default_scope(cfg.default_scope)
    size, device = SIZES.get(dataset(name), 64), 'cpu' if name.startswith('dit') else 'meta'
    with torch.device('cpu' if 'resnet' in name else device):  # mmpretrain's ResNet computes with numbers as it is built
        model = MODELS.build(dict(cfg.model, data_preprocessor=None)).to(device).eval()
    if getattr(model.backbone, 'chosen', 0) is None:
        model.backbone.select(0)
    out = model(torch.zeros(2, 3, size, size, device=device), mode='tensor')
    assert out.shape[:2] == (2, CLASSES[dataset(name)])


def test_the_vit_has_the_tokens_and_the_width_of_the_demo_dit():
    init_default_scope('mmseg')
    vit, dit = (MODELS.build(Config.fromfile(path).model.backbone)
                for path in (BASELINES['vit_fashion_scenes'], runs.CONFIGS['aselect_fashion_scenes']))
    images = torch.zeros(1, 3, 64, 64)
    dit.select(0)
    with torch.no_grad():
        assert [m.shape for m in vit(images)] == [m.shape for m in dit(images)] == [(1, 128, 8, 8)] * 4
    assert len(vit.layers) == dit.extractor.family.depth


@pytest.fixture(scope='module')
def pretrained(data, tmp_path_factory):
    """A file with the weights of a MAE that saw two batches, the folder of its scenes, and its Runner."""
    folder = tmp_path_factory.mktemp('mae')
    rng = np.random.default_rng(4)
    for index in range(3):
        layouts.save(folder / 'img_dir' / 'pretrain' / f'{index}.png', layouts.picture(rng, 64, 64))
    source = 'train_dataloader.dataset.datasets'
    runner = trained(PRETRAINING, {
        f'{source}.0.data_root': str(folder), f'{source}.1.data_root': str(data / 'fashion_mnist'),
        'train_dataloader.batch_size': 4, 'train_cfg.max_iters': 2, 'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1}, folder / 'run')
    assert math.isfinite(runner.message_hub.log_scalars['train/loss'].current())
    file = folder / 'mae.pth'
    runs.run_here(PUBLISH, folder / 'run' / 'iter_2.pth', file)
    return file, folder, runner


def test_mae_reads_the_images_that_the_dit_was_pretrained_on(pretrained, data, monkeypatch):
    monkeypatch.syspath_prepend(runs.ROOT / 'tools')
    from pretrain_data import read_images, to_tensor
    _, folder, runner = pretrained
    images = read_images([folder / 'img_dir' / 'pretrain', data / 'fashion_mnist' / 'train-images-idx3-ubyte'], 64)
    dataset = runner.train_dataloader.dataset
    batch = default_collate([dataset[index] for index in range(len(dataset))])
    torch.testing.assert_close(runner.model.data_preprocessor(batch)['inputs'].cpu(), to_tensor(images))


@pytest.fixture(scope='module')
def photographs(data, tmp_path_factory):
    """The file of an encoder that was pretrained on photographs for two steps."""
    folder = tmp_path_factory.mktemp('photographs')
    runner = trained(PHOTOGRAPHS, {
        'train_dataloader.dataset.data_root': str(data / 'cifar10'), 'train_dataloader.batch_size': 4, 'train_cfg.max_iters': 2,
        'default_hooks.checkpoint.interval': 2, 'default_hooks.logger.interval': 1}, folder)
    assert math.isfinite(runner.message_hub.log_scalars['train/loss'].current())
    runs.run_here(PUBLISH, folder / 'iter_2.pth', folder / 'mae.pth')
    return folder / 'mae.pth'


def test_mae_of_photographs_gives_the_frozen_baseline_its_weights(photographs):
    backbone = MODELS.build(Config.fromfile(BASELINES['mae_frozen_cifar10']).model.backbone)
    assert load(photographs).keys() == backbone.state_dict().keys()


def test_mae_sees_as_many_images_as_the_dit_did():
    cfg = Config.fromfile(PRETRAINING)
    assert cfg.train_cfg.max_iters * cfg.train_dataloader.batch_size == 640_000
    assert cfg.train_dataloader.dataset.datasets[1].get('indices') is None


TRAINED = ('resnet18_fashion_scenes', 'resnet18_cifar10_few', 'resnet50_linear_cub', 'vit_b16_ade20k', 'vit_b16_cub',
           'mae_frozen_fashion_mnist', 'mae_finetuned_fashion_scenes', 'mae_frozen_camvid', 'dit_attention_fashion_mnist',
           'dit_draws_fashion_scenes')  # by make test: each kind of backbone in each toolbox


@pytest.mark.parametrize('name', quick(BASELINES, TRAINED))
def test_trains_and_validates(name, data, tmp_path, request, evaluated):
    changes = {}
    if name.startswith('mae'):
        file = (request.getfixturevalue('photographs') if name.endswith(('cifar10', 'camvid')) else
                request.getfixturevalue('pretrained')[0])
        changes = {'model.backbone.init_cfg.checkpoint': str(file)}
    runner = trained(BASELINES[name], tiny(name, data, changes), tmp_path)
    assert runner.iter == 1
    logged = runner.message_hub.log_scalars
    assert math.isfinite(logged['train/loss'].current())
    chooses = name == 'dit_small_cifar10'  # the timesteps of other papers are fixed
    assert (tmp_path / 'timestep_selection.json').exists() == chooses
    metric = logged['val/mIoU' if segments(name) else 'val/accuracy/top1'].current()
    assert metric == pytest.approx(evaluated.metric(), abs=0.006) and len(evaluated) == len(runner.val_dataloader.dataset)
    backbone = runner.model.backbone
    frozen = name.startswith('dit') or 'frozen' in name or 'linear' in name
    assert any(p.requires_grad for p in backbone.parameters()) != frozen
    if name.startswith('mae'):
        before, key = load(file), 'layers.0.attn.qkv.weight'
        assert before[key].dtype == torch.float16 and before.keys() == backbone.state_dict().keys()
        assert torch.equal(backbone.state_dict()[key].cpu(), before[key].float()) == frozen


def test_publishing_names_a_checkpoint_without_a_backbone(tmp_path, capsys):
    torch.save(dict(state_dict=dict(head=torch.zeros(1))), tmp_path / 'head.pth')
    with pytest.raises(SystemExit) as stop:
        runs.run_here(PUBLISH, tmp_path / 'head.pth', tmp_path / 'out.pth')
    assert stop.value.code == 2 and "begins with 'backbone.'" in capsys.readouterr().err
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize('data_name', ['scenes', 'mnist'])
def test_timesteps_and_draws_of_other_papers(data_name):
    found = {kind: Config.fromfile(BASELINES[f'dit_{kind}_fashion_{data_name}']).model for kind in
             ('fixed', 'draws', 'concat', 'attention')}
    fixed = found['fixed'].backbone.timestep
    assert isinstance(fixed, int) and found['draws'].backbone.timestep == fixed and found['draws'].backbone.noise_draws > 1
    for kind in ('concat', 'attention'):
        model = found[kind]
        assert model.neck.fusion == kind and model.neck.selection.num_timesteps == len(model.backbone.timestep) > 1
