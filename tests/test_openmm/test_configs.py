"""Every shipped config parses, names what exists, fits together, and runs a training and a validation step."""
import json
import math
import re
import sys
from pathlib import Path

import by_hand
import layouts
import pytest
import runs
import tiny
import torch
from marks import quick
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS

from mmaselect.openmm import AutoTimestepHook, DiTBackbone, launch, processes
from mmaselect.openmm.configs import nodes
from mmaselect.openmm.safe_load import load

NO_FSDP = 'without a GPU, FSDP of torch 2.1 does not run'
DIT_XL_2 = dict(width=1152, depth=28)  # Peebles and Xie 2023, arXiv:2212.09748, table 1
# By the config.json of their transformers. SD3's width is 64 times its depth (arXiv:2403.03206, section 4).
SIZES = dict(sd3=dict(width=1536, depth=24), flux=dict(width=3072, depth=57), flux2=dict(width=6144, depth=56),
             lumina2=dict(width=2304, depth=28), z_image=dict(width=3840, depth=32), sana=dict(width=2240, depth=20),
             qwen_image=dict(width=3072, depth=60), flux2_klein=dict(width=3072, depth=25), prx=dict(width=1792, depth=16),
             pixart=dict(width=1152, depth=28), lightningdit=dict(width=1152, depth=28))


def sizes(name):
    """Width and depth of the DiT that a config's checkpoint has."""
    if runs.family_of(name):
        return SIZES[runs.family_of(name)]
    backbone = runs.shipped(name).model.backbone
    if str(backbone.get('pretrained')).startswith('facebook/DiT-XL-2'):
        return DIT_XL_2
    dit = backbone.arch.transformer if 'arch' in backbone else shipped_dit(backbone.pretrained)
    return dict(width=dit['num_attention_heads'] * dit['attention_head_dim'], depth=dit['num_layers'])


def shipped_dit(folder):
    return json.loads((Path(folder) / 'transformer' / 'config.json').read_text())


@pytest.mark.parametrize('name', runs.CONFIGS)
def test_names_what_is_registered(name):
    cfg = runs.shipped(name)
    assert cfg.model.backbone.type == 'mmaselect.DiTBackbone' and cfg.model.neck.type == 'mmaselect.AutoTimestepNeck'
    assert [hook.type for hook in cfg.custom_hooks] == ['mmaselect.AutoTimestepHook']
    wanted = [(MODELS, list(nodes(cfg.model))), (HOOKS, [*cfg.custom_hooks, *cfg.default_hooks.values()]),
              (DATASETS, [loader.dataset for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)])]
    for registry, entries in wanted:
        with registry.switch_scope_and_registry(cfg.default_scope) as own:
            assert [entry.type for entry in entries if 'type' in entry and own.get(entry.type) is None] == []


@pytest.mark.parametrize('name', runs.CONFIGS)
def test_backbone_neck_and_head_fit(name):
    """As shipped, that is with the sizes which the runs below replace."""
    cfg = runs.shipped(name)
    taps, neck, model = cfg.model.backbone.taps, cfg.model.neck, cfg.model
    width, depth = sizes(name).values()
    assert (neck.in_channels, neck.get('num_taps', 1)) == (width, len(taps))
    assert all(0 <= block < depth for block, _ in taps)
    joined = width * len(taps)
    if neck.output == 'vector':
        cells = neck.grid**2 if neck.pool == 'grid' else 1
        assert model.head.in_channels == joined * cells and joined % neck.get('num_heads', 8) == 0
        return
    assert model.decode_head.in_channels == (joined if neck.output == 'map' else [width] * len(neck.scales))
    if model.get('auxiliary_head'):
        assert model.auxiliary_head.in_channels == width
        assert model.auxiliary_head.num_classes == model.decode_head.num_classes
    crop = cfg.get('crop_size', model.data_preprocessor.size)
    assert model.data_preprocessor.size == crop and model.test_cfg.get('crop_size', crop) == crop


@pytest.mark.parametrize('name', ['fashion_scenes', 'fashion_mnist', 'cifar10', 'camvid'])
def test_a_control_differs_in_the_weights_alone(name):
    demo, control = (Config.fromfile(runs.CONFIGS[f'{kind}_{name}']) for kind in ('aselect', 'random'))
    theirs, ours = (MODELS.build(dict(cfg.model.backbone, fold=False)).extractor for cfg in (demo, control))
    for key, value in shipped_dit(demo.model.backbone.pretrained).items():
        assert key.startswith('_') or ours.family.model.config[key] == value, key
    shapes = [{key: value.shape for key, value in extractor.state_dict().items()} for extractor in (theirs, ours)]
    assert shapes[0] == shapes[1]
    # To both transformers, latents are of about unit deviation.
    latents = [extractor.encoder(tiny.images(4, 64, 64)) for extractor in (theirs, ours)]
    assert all(0.3 < latent.std() < 3 for latent in latents)
    assert torch.equal(theirs.process.sigma, ours.process.sigma) and theirs.taps == ours.taps
    weights = [extractor.state_dict() for extractor in (theirs, ours)]
    random = [key for key in weights[0] if key.endswith(('to_q.weight', 'conv1.weight'))]
    assert not any(torch.equal(weights[0][key], weights[1][key]) for key in random)
    for cfg in (demo, control):
        for key in ('pretrained', 'arch'):
            cfg.model.backbone.pop(key, None)
        cfg.pop('pretrained', None)
        cfg.pop('random_backbone', None)
    assert demo.to_dict() == control.to_dict()


def test_the_shipped_checkpoints_are_small_and_hold_no_code():
    files = [path for path in (runs.ROOT / 'configs').glob('fashion_*/**/*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24e6
    assert not [path for path in files if path.suffix in ('.bin', '.pth', '.pt', '.pkl', '.ckpt')]


@pytest.fixture
def alone(monkeypatch):
    """As torchrun starts one process: FSDP wants a process group."""
    for key, value in dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR='127.0.0.1', MASTER_PORT=runs.free_port()).items():
        monkeypatch.setenv(key, str(value))
    yield dict(launcher='pytorch')
    processes.leave()


def trained_by_make_test(name):
    """Whether it is: of configs that differ by the dataset alone, one for each toolbox is enough there."""
    text = runs.family_of(name) not in ('', 'sd3')
    return name.startswith(('aselect_ade20k', 'aselect_cub', 'aselect_fashion')) and not name.endswith('fsdp') and not text


@pytest.mark.parametrize('name', quick(runs.CONFIGS, trained_by_make_test))
def test_trains_and_validates(name, data, tmp_path, request, monkeypatch, evaluated):
    if runs.lacking(name):
        pytest.skip('this environment has no such transformer')
    results = []
    # In place of drawing, which takes long and is tested elsewhere.
    monkeypatch.setattr(AutoTimestepHook, '_report', lambda self, runner, result: results.append(result))
    shipped = runs.shipped(name)
    family = runs.family_of(name)
    changes = {'launcher': 'none', 'model.neck.selection.controls': [], 'default_hooks.checkpoint.save_last': False,
               'model.neck.selection.plateau': 0.99}  # so wide that its centre is not its best
    if runs.segments(name):
        changes.update({'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1,
                        'default_hooks.checkpoint.interval': 1 if family else 5})
    else:
        changes.update({'train_dataloader.batch_size': 12})
    if shipped.get('strategy'):
        if tiny.OLD_TORCH:
            pytest.skip(NO_FSDP)
        changes.update(request.getfixturevalue('alone'))
    cfg = runs.config(name, data, tmp_path, changes)
    launch.prepare(cfg)
    runner = launch.build_runner(cfg)
    runner.train()
    assert runner.iter == 1
    model = runner.model
    backbone = next(part for part in model.modules() if isinstance(part, DiTBackbone))
    result, = results
    assert [c.timestep for c in result.candidates] == [40, 150, 600] and backbone.chosen == by_hand.choice(result)
    trained = {key for key, p in backbone.named_parameters() if p.requires_grad}
    if 'lora' in shipped.model.backbone:
        assert trained and all('.lora_' in key for key in trained)
    else:
        assert bool(trained) != shipped.model.backbone.get('frozen', True)
    held = {id(p) for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']}
    if shipped.optim_wrapper.get('paramwise_cfg'):  # else MMEngine hands over frozen parameters as well
        assert held == {id(p) for p in model.parameters() if p.requires_grad}
    logged = runner.message_hub.log_scalars
    assert math.isfinite(logged['train/loss'].current())
    metric = logged['val/mIoU' if runs.segments(name) else 'val/accuracy/top1'].current()
    assert metric == pytest.approx(evaluated.metric(), abs=0.006)
    # Validation sees the validation images: in the tiny sets there are fewer.
    images = len(runner.val_dataloader.dataset)
    expected = 8 if name.endswith('fashion_mnist') else runs.VAL if runs.segments(name) else layouts.CLASSES
    assert images == len(evaluated) == expected
    # Flowers-102 and CustomDataset do not name their classes.
    classes = runner.val_dataloader.dataset.metainfo.get('classes')
    head = shipped.model.decode_head if runs.segments(name) else shipped.model.head
    assert classes is None or len(classes) == head.num_classes
    if family:
        resumes(name, data, tmp_path, changes, runner)
        assert len(results) == 1  # the choice is the checkpoint's


def resumes(name, data, folder, changes, before):
    """Trains on for a step from the checkpoint of the first."""
    cfg = runs.config(name, data, folder, {**changes, 'resume': True, 'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2})
    launch.prepare(cfg)
    runner = launch.build_runner(cfg)
    runner.load_or_resume()
    states = [{key: value for key, value in one.model.state_dict().items() if 'num_batches' not in key}
              for one in (before, runner)]
    assert runner.iter == 1 and states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    runner.train()
    assert runner.iter == 2 and math.isfinite(runner.message_hub.log_scalars['train/loss'].current())


@pytest.mark.slow
@pytest.mark.skipif(tiny.OLD_TORCH, reason=NO_FSDP)
def test_fsdp_shares_the_dit_out_among_two_processes(data, tmp_path):
    """Without a GPU, over gloo; the checkpoint is one that a single process can test."""
    cfg = runs.config('aselect_ade20k_fsdp', data, tmp_path)
    cfg.dump(tmp_path / 'config.py')
    printed = runs.run(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={runs.free_port()}',
                       runs.ROOT / 'tools' / 'train.py', tmp_path / 'config.py', '--launcher', 'pytorch', '--work-dir', tmp_path)
    assert 'selected timestep' in printed and re.search(r'last evaluation: .*mIoU \d+\.\d\d', printed)
    runner = runs.runner('aselect_ade20k_finetune', data, tmp_path / 'test', {
        'load_from': str(tmp_path / 'iter_2.pth'), 'model.backbone.fold': False})
    state = load(tmp_path / 'iter_2.pth')['state_dict']
    assert {key: value.shape for key, value in state.items()} == {key: v.shape for key, v in runner.model.state_dict().items()}
    # Of one seed, so it began with the same weights.
    before = runner.model.backbone.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(state[f'backbone.{key}'], value)]
    assert any('blocks.3.' in key for key in changed) and not [key for key in changed if 'encoder.' in key]
    runner.test()
    assert runner.model.backbone.chosen == int(state['backbone.timestep'])
