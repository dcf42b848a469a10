"""Checkpoints hold what was trained; a reference stands for the frozen weights of ``pretrained``."""
import json
import shutil
from pathlib import Path

import pytest
import runs
import tiny
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from mmseg.apis import inference_model, init_model
from safetensors.torch import load_file, save_file

from mmaselect.extract import fingerprint
from mmaselect.openmm import configs, hook
from mmaselect.openmm.frozen import Reference
from mmaselect.registry import MODELS

SEG, CLS = 'aselect_fashion_scenes', 'aselect_cub'
PUBLISH = runs.ROOT / 'tools' / 'publish_model.py'
LORA = dict(r=2, alpha=2, targets=['to_q'])


def backbone(seed=0, **options):
    return tiny.backbone(seed, **{'taps': [(1, 'query'), (2, 'hidden')], **options}).eval()


def assert_same(model, other):
    torch.testing.assert_close(model(tiny.images(2, 12, 20)), other(tiny.images(2, 12, 20)), rtol=0, atol=0)


def perturb(path):
    """Adds to one weight of a safetensors file."""
    weights = load_file(path)
    name = next(name for name in sorted(weights, reverse=True) if weights[name].ndim == 4)
    weights[name][0, 0] += 1
    save_file(weights, path, metadata=dict(format='pt'))


# State dicts


@pytest.mark.parametrize('options', [dict(timestep=50), dict(timestep=[50, 300]), dict(timestep=50, fold=False), dict()])
def test_frozen_weights_are_left_out_and_found_again(options, folder):
    model = backbone(pretrained=folder, **options)
    state = model.state_dict()
    assert state.keys() == {'timestep', 'tap', 'reference'}
    for load in (lambda m: m.load_state_dict(state), lambda m: load_state_dict(m, state, strict=True)):
        other = backbone(pretrained=folder, num_timesteps=model.num_timesteps, fold=options.get('fold', True))
        load(other)
        assert other.timesteps == model.timesteps and other.state_dict().keys() == state.keys()
        if model.timesteps:
            assert_same(other, model)


@pytest.mark.parametrize('options, held', [(dict(frozen=False), 'family.blocks.0.qkv.weight'), (dict(lora=LORA), 'lora_A')])
def test_what_is_trained_is_stored_and_the_rest_is_not(options, held, folder):
    model = backbone(pretrained=folder, timestep=50, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    state = model.state_dict()
    stored = {key.removeprefix('extractor.') for key in state if key.startswith('extractor.')}
    assert stored == {name for name, p in model.extractor.named_parameters() if p.requires_grad}
    assert any(held in name for name in stored)
    other = backbone(pretrained=folder, **options)
    other.load_state_dict(state)
    assert_same(other, model)


def test_weights_are_hashed_when_they_are_asked_for_and_once(folder, monkeypatch):
    """By checkpoints and by the sweep, whichever comes first; of what was written to they are hashed anew."""
    counted, hash_of = [], fingerprint.hash_of
    monkeypatch.setattr(fingerprint, 'hash_of', lambda state, *about: counted.append(len(state)) or hash_of(state, *about))
    model = backbone(pretrained=folder)
    assert not counted
    own = fingerprint.weights_hash(model.unfolded())
    model.select(50)
    state = model.state_dict()
    assert len(counted) == 1 and model.reference().dit == own == Reference(**json.loads(bytes(state['reference'].tolist()))).dit
    whole = backbone(pretrained=folder, fold=False)
    assert fingerprint.weights_hash(whole.extractor) == own
    next(whole.extractor.family.parameters()).add_(1)
    assert fingerprint.weights_hash(whole.extractor) != own and len(counted) == 3


@pytest.mark.parametrize('options', [dict(), dict(timestep=50), dict(timestep=50, fold=False), dict(lora=LORA, timestep=50)])
def test_an_init_cfg_of_the_whole_model_leaves_the_dit_alone(options, folder):
    """As those of 94 ImageClassifiers of the zoo, which draw all linear layers anew, at any depth."""
    recipe = dict(type='TruncNormal', layer=['Linear', 'Conv2d'], std=0.02)
    model = BaseModule(init_cfg=recipe)
    model.backbone, model.head = backbone(pretrained=folder, **options), torch.nn.Linear(3, 4)
    before = {name: value.clone() for name, value in model.backbone.extractor.state_dict().items()}
    head = model.head.weight.detach().clone()
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.extractor.state_dict().items())
    assert not torch.equal(model.head.weight, head)


def test_random_weights_are_stored():
    model = backbone(arch=tiny.ARCH, timestep=50)
    other = backbone(1, arch=tiny.ARCH)
    other.load_state_dict(model.state_dict())
    assert 'reference' not in model.state_dict()
    assert_same(other, model)


def test_weights_of_another_checkpoint_are_kept(folder):
    """A fine-tuned DiT that is frozen: ``pretrained`` does not have its weights, so checkpoints go on holding them."""
    tuned = backbone(pretrained=folder, timestep=50, frozen=False)
    with torch.no_grad():
        tuned.extractor.family.blocks[0].fc1.weight.add_(1)
    model, again = (backbone(pretrained=folder) for _ in range(2))
    model.load_state_dict(tuned.state_dict())
    assert_same(model, tuned)
    again.load_state_dict(model.state_dict())
    assert_same(again, tuned)
    with pytest.raises(ValueError, match='its weights are not those of pretrained='):
        again.select(60)


@pytest.mark.parametrize('part, message', [('transformer', 'frozen transformer of'), ('vae', 'frozen VAE of')])
def test_weights_that_changed_are_refused(part, message, folder, tmp_path):
    state = backbone(pretrained=folder, timestep=50).state_dict()
    shutil.copytree(folder, tmp_path / 'same')
    backbone(pretrained=str(tmp_path / 'same')).load_state_dict(state)  # wherever it is
    path, = (tmp_path / 'same' / part).glob('*.safetensors')
    perturb(path)
    with pytest.raises(ValueError, match=f'the checkpoint was trained on the {message} .*has other weights now.*train anew'):
        backbone(pretrained=str(tmp_path / 'same')).load_state_dict(state)


def test_random_weights_do_not_stand_for_those_that_a_checkpoint_refers_to(folder):
    with pytest.raises(ValueError, match='refers to the frozen weights of .*set backbone.pretrained to it.*publish_model.py'):
        backbone(arch=tiny.ARCH).load_state_dict(backbone(pretrained=folder, timestep=50).state_dict())


def test_a_chosen_tap_and_another_timestep_than_the_checkpoints(folder):
    source = backbone(pretrained=folder)
    source.select(50, (1, 'key'))
    model = backbone(pretrained=folder, timestep=80)
    with pytest.warns(UserWarning, match='fixes timestep=80'):
        model.load_state_dict(source.state_dict())
    assert model.extractor.taps == ((1, 'key'),)
    assert_same(model, backbone(pretrained=folder, timestep=80, taps=[(1, 'key')]))


# Runs


@pytest.fixture(scope='module')
def trained(data, folder, tmp_path_factory):
    """The work dir of a run on a checkpoint folder, whose optimizer is handed frozen parameters as well."""
    work_dir = tmp_path_factory.mktemp('run')
    runs.runner(SEG, data, work_dir, pretrained(folder)).train()
    return work_dir


def pretrained(folder, **changes):
    return {'model.backbone.arch': None, 'model.backbone.pretrained': folder, **changes}


@pytest.fixture
def no_sweep(monkeypatch):
    monkeypatch.setattr(hook, 'sweep', None)  # anyone who calls it fails


def test_a_run_resumes_with_its_timestep_fixed_in_the_config(trained, data, folder, tmp_path, no_sweep):
    chosen = int(torch.load(trained / 'iter_2.pth', weights_only=False)['state_dict']['backbone.timestep'])
    shutil.copytree(trained, tmp_path / 'run')
    runner = runs.runner(SEG, data, tmp_path / 'run', pretrained(folder, resume=True, **{
        'train_cfg.max_iters': 3, 'train_cfg.val_interval': 3, 'model.backbone.timestep': chosen}))
    runner.train()
    assert runner.iter == 3 and runner.model.backbone.chosen == chosen


def test_an_averaged_model_has_the_frozen_weights(data, folder, tmp_path):
    for begin in (0, 2):
        cfg = runs.config(SEG, data, tmp_path / str(begin), pretrained(folder))
        cfg.custom_hooks.append(dict(type='EMAHook', begin_iter=begin))
        runner = runs.Runner.from_cfg(cfg)
        runner.train()
        average = next(own.ema_model.module for own in runner.hooks if hasattr(own, 'ema_model'))
        assert average.backbone.chosen == runner.model.backbone.chosen
        assert_same(average.backbone, runner.model.backbone)


@pytest.fixture(scope='module')
def published(trained, data, folder, tmp_path_factory):
    """A folder with a published model and nothing else."""
    source = tmp_path_factory.mktemp('source')
    runs.config(SEG, data, source, pretrained(folder)).dump(source / 'config.py')
    out = tmp_path_factory.mktemp('alone') / 'model'
    runs.run_here(PUBLISH, source / 'config.py', trained / 'iter_2.pth', out)
    return out


def test_a_published_model_needs_nothing_else(published, trained, data, folder, tmp_path, no_sweep):
    checkpoint, config = sorted(published.iterdir())
    assert config.suffix == '.py' and checkpoint.suffix == '.pth' and folder not in config.read_text()
    image = next((data / 'fashion_scenes').glob('img_dir/val/*'))
    alone = init_model(str(config), str(checkpoint), device='cpu')
    runs.config(SEG, data, tmp_path, pretrained(folder)).dump(tmp_path / 'config.py')
    other = init_model(str(tmp_path / 'config.py'), str(trained / 'iter_2.pth'), device='cpu')
    assert alone.backbone.chosen == other.backbone.chosen is not None
    found, expected = (inference_model(model, str(image)).seg_logits.data for model in (alone, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert alone.dataset_meta['classes'] == other.dataset_meta['classes']
    runs.run_here(runs.ROOT / 'tools' / 'test.py', config, checkpoint, '--work-dir', tmp_path / 'test')
    whole = torch.load(checkpoint, weights_only=True)
    assert whole.keys() == {'meta', 'state_dict'}
    small = torch.load(trained / 'iter_2.pth', weights_only=False)['state_dict'].keys()
    frozen = {f'backbone.extractor.{name}' for name in alone.backbone.extractor.state_dict()}
    assert not small & frozen and whole['state_dict'].keys() == small - {'backbone.reference'} | frozen


def test_levels_that_a_training_leaves_out_are_no_hindrance(data, folder, tmp_path):
    """Of a pyramid that a head reads one level of, tools/train.py builds that one."""
    head = dict(_delete_=True, type='FCNHead', in_channels=runs.WIDTH, in_index=2, channels=4, num_classes=11, num_convs=1)
    cfg = runs.config(SEG, data, tmp_path, pretrained(folder, **{'model.decode_head': head, 'model.backbone.timestep': 40}))
    cfg.dump(tmp_path / 'config.py')
    configs.leave_out_levels(cfg)
    assert cfg.model.neck.levels == [2]
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    torch.save(dict(meta={}, state_dict=model.state_dict()), tmp_path / 'model.pth')
    runs.run_here(PUBLISH, tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'out')
    assert Config.fromfile(tmp_path / 'out' / 'config.py').model.neck.levels == [2]


@pytest.mark.parametrize('case, message', [('out', 'exists already'), ('open', 'has no timestep'),
                                           ('baseline', 'no DiTBackbone')])
def test_what_cannot_be_published_is_named(case, message, published, trained, data, folder, tmp_path, capsys):
    config, checkpoint, out = tmp_path / 'config.py', trained / 'iter_2.pth', tmp_path / 'out'
    runs.config('random_fashion_scenes' if case == 'baseline' else SEG, data, tmp_path, {} if case == 'baseline' else
                pretrained(folder)).dump(config)
    if case == 'baseline':
        text = config.read_text()
        config.write_text(text + "\nmodel = dict(type='EncoderDecoder', backbone=dict(type='ResNet', depth=18), decode_head=dict("
                          "type='FCNHead', in_channels=512, channels=8, num_classes=2))\n")
    if case == 'open':
        state = torch.load(checkpoint, weights_only=False)
        state['state_dict']['backbone.timestep'].fill_(-1)
        checkpoint = tmp_path / 'open.pth'
        torch.save(state, checkpoint)
    if case == 'out':
        out.mkdir()
    with pytest.raises(SystemExit):
        runs.run_here(PUBLISH, config, checkpoint, out)
    assert message in capsys.readouterr().err
    assert case == 'out' or not Path(out).exists()
