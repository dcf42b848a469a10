"""Several timesteps from the sweep to the metric: the choice is state, in both toolboxes."""
import copy
import warnings

import pytest
import runs
import tiny
import torch
from marks import quick
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain import ImageClassificationInferencer
from mmseg.apis import init_model

from mmaselect.openmm import hook as module
from mmaselect.selection import SelectionResult

SEG, CLS = 'aselect_fashion_scenes', 'aselect_cub'
TAPS = [(0, 'query'), (2, 'hidden')]
SEVERAL = {
    'model.backbone.num_timesteps': 3, 'model.neck.selection.num_timesteps': 3, 'model.neck.selection.gap': 100,
    'model.neck.selection.candidates': [40, 90, 150, 300, 600]}
CHANGES = {
    SEG: {**SEVERAL, 'model.neck.fusion': 'concat', 'model.decode_head.in_channels': [3 * runs.WIDTH] * 4},
    CLS: {**SEVERAL, 'model.neck.fusion': 'weights'}}


def backbone(**options):
    return tiny.backbone(**{'taps': TAPS, **options})


# The backbone


def test_maps_come_timestep_by_timestep_in_the_order_of_the_list():
    images = tiny.images(2, 12, 20)
    maps = backbone(timestep=[300, 50, 150])(images)
    expected = [m for t in (300, 50, 150) for m in backbone(timestep=t)(images)]
    assert len(maps) == 6
    torch.testing.assert_close(list(maps), expected)


def test_draws_of_noise_are_averaged_and_one_changes_nothing():
    images = tiny.images()
    model = backbone(timestep=[300, 50], noise_draws=4)
    maps = model(images)
    expected = model.extractor(images, 50, draws=4)
    assert all(torch.equal(own, its) for own, its in zip(maps[2:], expected, strict=True))
    assert torch.equal(backbone(timestep=50, noise_draws=1)(images)[0], backbone(timestep=50)(images)[0])
    assert not torch.allclose(expected[1], backbone(timestep=50)(images)[1])


@pytest.mark.parametrize('load', ['strict', 'mmengine'])
def test_the_choice_travels_in_its_order(load):
    source, target = backbone(timestep=[300, 50, 150]), backbone(num_timesteps=3)
    assert target.chosen is None and target.timesteps == ()
    with pytest.raises(RuntimeError, match='no timestep yet'):
        target(tiny.images())
    if load == 'strict':
        target.load_state_dict(source.state_dict())
    else:
        load_state_dict(target, source.state_dict(), strict=True)
    assert target.timesteps == (300, 50, 150) and target.chosen == 300
    assert all(torch.equal(a, b) for a, b in zip(source(tiny.images()), target(tiny.images()), strict=True))


@pytest.mark.parametrize('options', [dict(timestep=50), dict(timestep=[50]), dict(timestep=50, num_timesteps=1)], ids=str)
def test_one_timestep_is_stored_as_it_always_was(options):
    state = backbone(**options).state_dict()
    assert state['timestep'].shape == () and state['timestep'] == 50
    target = backbone()
    target.load_state_dict({**state, 'timestep': torch.tensor(70)})
    assert target.timesteps == (70,)


@pytest.mark.parametrize('load', ['strict', 'mmengine'])
@pytest.mark.parametrize('source, target, has, wants', [
    (dict(timestep=[300, 50, 150]), dict(), 3, 1),  # torch would take the first
    (dict(timestep=[300, 50, 150]), dict(num_timesteps=2), 3, 2),
    (dict(timestep=300), dict(num_timesteps=3), 1, 3),
    (dict(timestep=[300, 50, 150]), dict(timestep=70), 3, 1),
])
def test_another_number_of_timesteps_is_an_error(load, source, target, has, wants):
    state, model = backbone(**source).state_dict(), backbone(**target)
    with pytest.raises(ValueError, match=rf'checkpoint has {has} timesteps \(timestep is .*300.* set up for {wants}: '
                                         f'set num_timesteps .* to {has}'):
        model.load_state_dict(state) if load == 'strict' else load_state_dict(model, state)


def test_fixed_timesteps_beat_the_checkpoints_and_say_so(folder):
    shipped = dict(arch=None, pretrained=folder)
    target = backbone(timestep=[80, 90], **shipped)
    with pytest.warns(UserWarning, match='made at timestep 50, 60 and the config fixes timestep=80, 90'):
        target.load_state_dict(backbone(timestep=[50, 60], **shipped).state_dict())
    assert target.timesteps == (80, 90)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        target.load_state_dict(backbone(timestep=[80, 90], **shipped).state_dict())
        target.load_state_dict(backbone(num_timesteps=2, **shipped).state_dict())
    assert target.timesteps == (80, 90)


@pytest.mark.parametrize('options, message', [
    (dict(timestep=[50, 1000]), r'timestep=1000 is no integer in \[0, 999\]'),
    (dict(timestep=[50, 50]), r'timestep=\[50, 50\] does not name 2 different'),
    (dict(timestep=[50, 60], num_timesteps=3), 'does not name 3 different timesteps'),
    (dict(timestep=50, num_timesteps=2), 'does not name 2 different timesteps'),
    (dict(timestep=[]), 'does not name 1 different'),
    (dict(num_timesteps=0), 'num_timesteps=0: an integer, 1 or more'),
    (dict(noise_draws=0), '0 draws'),
    (dict(noise='none', noise_draws=2), "2 draws of noise 'none'"),
])
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**options)


# Runs


@pytest.fixture(scope='module', params=quick([SEG, CLS], [CLS]))
def trained(request, data, tmp_path_factory):
    """The name of the config, the runner after training and a validation, and the checkpoint."""
    folder = tmp_path_factory.mktemp('run')
    runner = runs.runner(request.param, data, folder, CHANGES[request.param])
    runner.train()
    return request.param, runner, folder / ('iter_2.pth' if request.param == SEG else 'epoch_1.pth')


@pytest.fixture
def no_sweep(monkeypatch):
    monkeypatch.setattr(module, 'sweep', None)  # anyone who calls it fails


def spaced(timesteps, gap=100):
    return all(abs(a - b) >= gap for k, a in enumerate(timesteps) for b in timesteps[:k])


def test_the_choice_is_written_and_kept(trained):
    name, runner, checkpoint = trained
    result = SelectionResult.load(checkpoint.parent / 'timestep_selection.json')
    assert len(result.timesteps) == 3 and spaced(result.timesteps)
    assert result.timestep == max(result.candidates, key=lambda c: c.score).timestep
    assert runner.model.backbone.timesteps == result.timesteps
    state = torch.load(checkpoint, map_location='cpu', weights_only=False)['state_dict']
    assert tuple(state['backbone.timestep'].tolist()) == result.timesteps
    if name == CLS:
        assert state['neck.fusions.0.logits'].shape == (3,) and state['neck.fusions.0.logits'].any()  # trained


def test_a_test_of_the_checkpoint_gives_the_metric_of_the_training(trained, data, tmp_path, no_sweep):
    name, before, checkpoint = trained
    runner = runs.runner(name, data, tmp_path, {**CHANGES[name], 'load_from': str(checkpoint)})
    metrics = runner.test()
    assert runner.model.backbone.timesteps == before.model.backbone.timesteps
    metric = 'mIoU' if name == SEG else 'accuracy/top1'
    assert metrics[metric] == pytest.approx(before.message_hub.log_scalars[f'val/{metric}'].current())
    for key, value in runner.model.state_dict().items():
        assert torch.equal(value, before.model.state_dict()[key]), key


def test_the_model_depends_on_each_timestep(trained):
    _, runner, _ = trained
    model = copy.deepcopy(runner.model).eval()
    modulations = [block.modulation for block in model.backbone.extractor.family.blocks]
    images = tiny.images(1, 32, 32).to(next(model.parameters()).device)

    @torch.no_grad()
    def output():
        return model.neck(model.backbone(images))[0]

    before = output()
    for place in range(3):
        with torch.no_grad():
            modulations[0][place].norm1.bias += 1
        after = output()
        assert not torch.allclose(after, before)
        before = after


def test_resuming_keeps_the_choice(trained, data, tmp_path, no_sweep):
    name, before, checkpoint = trained
    longer = {'train_cfg.max_iters': 3, 'train_cfg.val_interval': 9} if name == SEG else {'train_cfg.max_epochs': 2}
    runner = runs.runner(name, data, tmp_path, {**CHANGES[name], **longer, 'load_from': str(checkpoint), 'resume': True})
    runner.train()
    assert runner.model.backbone.timesteps == before.model.backbone.timesteps


def test_an_averaged_model_carries_the_choice(data, tmp_path):
    cfg = runs.config(CLS, data, tmp_path, CHANGES[CLS])
    cfg.custom_hooks.append(dict(type='EMAHook', update_buffers=True))
    runner = runs.Runner.from_cfg(cfg)
    runner.train()
    state = torch.load(tmp_path / 'epoch_1.pth', map_location='cpu', weights_only=False)
    chosen = runner.model.backbone.timesteps
    assert len(chosen) == 3 and spaced(chosen)
    for key, own in (('ema_state_dict', 'module.backbone.timestep'), ('state_dict', 'backbone.timestep')):
        assert tuple(state[key][own].tolist()) == chosen


def test_the_inference_apis_get_the_choice(trained, tmp_path, no_sweep):
    name, before, checkpoint = trained
    config = tmp_path / 'config.py'
    before.cfg.dump(config)
    model = (init_model(str(config), str(checkpoint), 'cpu') if name == SEG
             else ImageClassificationInferencer(str(config), pretrained=str(checkpoint), device='cpu').model)
    assert model.backbone.timesteps == before.model.backbone.timesteps


def test_fixed_timesteps_mean_no_sweep(data, tmp_path, no_sweep):
    changes = {**CHANGES[CLS], 'model.backbone.num_timesteps': None, 'model.backbone.timestep': [50, 150, 300]}
    runner = runs.runner(CLS, data, tmp_path, changes)
    runner.test()
    assert runner.model.backbone.timesteps == (50, 150, 300)


def test_a_checkpoint_of_another_number_is_an_error(trained, data, tmp_path, no_sweep):
    name, _, checkpoint = trained
    runner = runs.runner(name, data, tmp_path, {'load_from': str(checkpoint)})
    with pytest.raises(ValueError, match='checkpoint has 3 timesteps .*backbone.timestep is .* set up for 1'):
        runner.test()


def test_backbone_and_neck_must_agree(data, tmp_path, no_sweep):
    runner = runs.runner(CLS, data, tmp_path, {'model.neck.selection.num_timesteps': 3})
    with pytest.raises(ValueError, match='the neck chooses 3 timesteps and the backbone is set up for 1: set num_timesteps of'):
        runner.test()
