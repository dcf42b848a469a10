"""Every shipped config parses, names what exists, fits together, and runs a training and a validation step."""
import json
import math

import pytest
import runs
import tiny
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS

from mmaselect.openmm import DiTBackbone
from mmaselect.openmm.launch import nodes

FILES = sorted((runs.ROOT / 'configs').glob('*.py'))
CHECKPOINT = runs.ROOT / 'configs' / 'fashion_dit'
DIT_XL_2 = dict(width=1152, depth=28)  # Peebles and Xie 2023, arXiv:2212.09748, table 1
SD3_MEDIUM = dict(width=1536, depth=24)  # its transformer/config.json; width is 64 times depth, arXiv:2403.03206, section 4


def sizes(name):
    """Width and depth of the DiT that a config's checkpoint has."""
    if name.endswith('sd3'):
        return SD3_MEDIUM
    if 'fashion' not in name:
        return DIT_XL_2
    dit = shipped_dit()
    return dict(width=dit['num_attention_heads'] * dit['attention_head_dim'], depth=dit['num_layers'])


def shipped_dit():
    return json.loads((CHECKPOINT / 'transformer' / 'config.json').read_text())


def test_none_is_forgotten_here():
    assert sorted(runs.CONFIGS.values()) == FILES


@pytest.mark.parametrize('name', runs.CONFIGS)
def test_names_what_is_registered(name):
    cfg = Config.fromfile(runs.CONFIGS[name])
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
    cfg = Config.fromfile(runs.CONFIGS[name])
    taps, neck, model = cfg.model.backbone.taps, cfg.model.neck, cfg.model
    width, depth = sizes(name).values()
    assert (neck.in_channels, neck.get('num_taps', 1)) == (width, len(taps))
    assert all(0 <= block < depth for block, _ in taps)
    if neck.output == 'vector':
        assert model.head.in_channels == width * len(taps)
    else:
        assert model.decode_head.in_channels == [width] * len(neck.scales)
        assert not model.get('auxiliary_head') or model.auxiliary_head.in_channels == width


@pytest.mark.parametrize('name', ['fashion_scenes', 'fashion_mnist'])
def test_a_control_differs_in_the_weights_alone(name):
    demo, control = (Config.fromfile(runs.CONFIGS[f'{kind}_{name}']) for kind in ('aselect', 'random'))
    theirs, ours = (MODELS.build(dict(cfg.model.backbone, fold=False)).extractor for cfg in (demo, control))
    for key, value in shipped_dit().items():
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


def test_the_shipped_checkpoint_is_small():
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob('*')) < 24e6
    assert not [path for path in CHECKPOINT.rglob('*') if path.suffix in ('.bin', '.pth', '.pt', '.pkl', '.ckpt')]


@pytest.mark.parametrize('name', runs.CONFIGS)
def test_trains_and_validates(name, data, tmp_path):
    changes = ({'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1} if runs.segments(name)
               else {'train_dataloader.batch_size': 12})
    runner = runs.runner(name, data, tmp_path, changes)
    runner.train()
    assert runner.iter == 1
    backbone = runner.model.backbone
    assert isinstance(backbone, DiTBackbone) and backbone.chosen in (40, 150, 600)
    assert not any(p.requires_grad for p in backbone.parameters())
    logged = runner.message_hub.log_scalars
    assert math.isfinite(logged['train/loss'].current())
    assert 0 <= logged['val/mIoU' if runs.segments(name) else 'val/accuracy/top1'].current() <= 100
    # Validation sees the validation images: in the tiny sets there are fewer.
    assert len(runner.val_dataloader.dataset) == {'fashion_mnist': 8, 'cub': 4}.get(name.partition('_')[2], runs.VAL)
