"""When a DiTBackbone folds its DiT, and what its checkpoints hold: it must be the same network all the way."""
import copy
import gc
import weakref

import pytest
import runs
import tiny
import torch
from diffusers import DDIMScheduler, DiTPipeline
from marks import quick
from mmengine.runner.checkpoint import load_state_dict
from torch._dynamo.utils import counters

from mmaselect.extract.families.folded_dit import FoldedDiT

SEG, CLS = 'aselect_fashion_scenes', 'aselect_cub'
TAPS = [(1, 'query'), (2, 'hidden')]


def backbone(seed=0, **options):
    return tiny.backbone(seed, **{'taps': TAPS, **options})


def is_folded(model):
    return isinstance(model.extractor.family, FoldedDiT)


def assert_same(model, other):
    torch.testing.assert_close(model.eval()(tiny.images(2, 12, 20)), other.eval()(tiny.images(2, 12, 20)), rtol=1e-4, atol=1e-5)


def parameters(model):
    return sum(p.numel() for p in model.extractor.family.parameters())


@pytest.fixture
def checkpoint():
    """Makes state dicts as they were before there was folding: whole, with the VAE's decoder."""
    def make(timestep, **options):
        model = backbone(fold=False, timestep=timestep, **options)
        state = model.state_dict()
        assert any('transformer_blocks' in key for key in state)
        decoder = tiny.extractor().encoder.vae.decoder.state_dict()
        return model, {**state, **{f'extractor.encoder.vae.decoder.{key}': value for key, value in decoder.items()}}
    return make


# When it folds


@pytest.mark.parametrize('frozen', [True, False])
def test_a_fixed_timestep_folds_at_once_and_a_choice_folds_then(frozen):
    fixed, chosen, whole = backbone(timestep=50, frozen=frozen), backbone(frozen=frozen), backbone(timestep=50, fold=False)
    assert is_folded(fixed) and not fixed.is_open and chosen.is_open
    with pytest.raises(RuntimeError, match='no timestep yet'):
        chosen(tiny.images())
    chosen.select(50)
    assert is_folded(chosen) and not chosen.is_open and not is_folded(whole) and chosen.chosen == 50
    assert_same(fixed, whole)
    assert_same(chosen, whole)
    assert fixed.state_dict().keys() == chosen.state_dict().keys()
    assert 2 * parameters(fixed) < parameters(whole)
    assert not any('decoder' in key for key in fixed.state_dict())


@pytest.mark.parametrize('frozen', [True, False])
def test_several_timesteps_fold_together_and_keep_the_positions(frozen, checkpoint):
    common = dict(pos_scale='extrapolate', noise_draws=2)
    source, state = checkpoint([300, 50], seed=1, **common)
    chosen, loaded = (backbone(seed, num_timesteps=2, frozen=frozen, **common) for seed in (1, 2))
    trained = {id(p) for p in loaded.parameters() if p.requires_grad}
    chosen.select((300, 50))
    loaded.load_state_dict(state)
    again = backbone(2, num_timesteps=2, **common)
    again.load_state_dict(chosen.state_dict())
    for model in (chosen, loaded, again):
        assert is_folded(model) and model.extractor.timesteps == model.timesteps == (300, 50)
        assert_same(model, source)
    assert {id(p) for p in loaded.parameters() if p.requires_grad} == trained
    if not frozen:
        sum(m.square().sum() for m in chosen.train()(tiny.images())).backward()
        assert all(p.grad is not None for p in chosen.extractor.family.parameters())


def test_the_memory_of_the_whole_is_freed_though_an_optimizer_holds_it():
    model = backbone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    whole = [weakref.ref(p) for p in model.unfolded().family.parameters()]
    assert all(p() is not None for p in whole)
    model.select(50)
    gc.collect()
    assert not any(p() is not None for p in whole) and optimizer


def test_the_whole_is_no_part_of_the_module_and_copies_share_it():
    model = backbone()
    whole = model.unfolded().family
    assert not {id(p) for p in whole.parameters()} & {id(p) for p in model.parameters()}
    assert copy.deepcopy(model).unfolded().family is whole


def test_an_unfolded_extractor_has_taps_of_its_own():
    model = backbone(timestep=50, fold=False)
    for each in (model, backbone()):
        each.unfolded().set_taps([(3, 'key')])
        assert each.extractor.taps == tuple(TAPS)


def test_a_dit_that_is_trained_keeps_its_parameters_at_the_choice():
    """The optimizer and DDP are made before it."""
    model = backbone(frozen=False)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    model.select(50)
    assert trained == {id(p) for p in model.extractor.family.parameters()}
    sum(m.square().sum() for m in model.train()(tiny.images())).backward()
    assert all(p.grad is not None for p in model.extractor.family.parameters())


def test_a_copy_that_was_made_before_the_choice_folds_too():
    model = backbone()
    other = copy.deepcopy(model)
    for each in (model, other):
        each.select(50)
    assert_same(model, other)


def test_choosing_again_takes_weights_that_are_to_be_had(tmp_path):
    extractor = tiny.extractor()
    DiTPipeline(extractor.family.model, extractor.encoder.vae, DDIMScheduler()).save_pretrained(tmp_path)
    options = dict(arch=None, pretrained=str(tmp_path), taps=[(3, 'hidden')])
    model = backbone(timestep=50, **options)
    model.select(60, (3, 'attn'))
    assert_same(model, backbone(timestep=60, **{**options, 'taps': [(3, 'attn')]}))
    model.load_state_dict(backbone(1, timestep=50, taps=[(3, 'hidden')]).state_dict())
    for lost in (model, backbone(timestep=50), backbone(timestep=50, frozen=False, **options)):
        with pytest.raises(ValueError, match='its weights are not those of pretrained=.*backbone.fold=False'):
            lost.select(70)
        assert is_folded(lost)


# Checkpoints


@pytest.mark.parametrize('load', ['strict', 'mmengine'])
@pytest.mark.parametrize('frozen', [True, False])
@pytest.mark.parametrize('stored', ['whole', 'folded'])
@pytest.mark.parametrize('timestep', [None, 50])
def test_a_checkpoint_loads_folded(stored, frozen, timestep, load, checkpoint):
    source, state = checkpoint(50, seed=1) if stored == 'whole' else ((m := backbone(1, timestep=50)), m.state_dict())
    model = backbone(timestep=timestep, frozen=frozen)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    if load == 'strict':
        model.load_state_dict(state)
    else:
        load_state_dict(model, state, strict=True)
    assert is_folded(model) and model.chosen == 50
    assert frozen != any(m.training for m in model.extractor.modules())
    assert_same(model, source)
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    before = [value.clone() for value in source.state_dict().values()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(before, source.state_dict().values(), strict=True))  # nothing is shared


@pytest.mark.parametrize('frozen', [True, False])
def test_a_checkpoint_from_before_the_choice_stays_open(frozen, checkpoint):
    source, state = checkpoint(None, seed=1)
    model = backbone(frozen=frozen)
    model.load_state_dict(state)
    assert model.is_open and model.chosen is None
    for each in (source, model):
        each.select(50)
    assert_same(model, source)


def test_a_checkpoint_brings_its_tap():
    source = backbone(1, taps=[(3, 'hidden')])
    source.select(50, (3, 'key'))
    for options in (dict(), dict(timestep=50)):
        model = backbone(taps=[(3, 'hidden')], **options)
        model.load_state_dict(source.state_dict())
        assert model.extractor.taps == ((3, 'key'),)
        assert_same(model, source)


def test_parts_of_a_model_load_without_the_backbone():
    model = torch.nn.ModuleDict(dict(backbone=backbone(timestep=50), head=torch.nn.Linear(2, 2)))
    before = model['backbone'](tiny.images())
    load_state_dict(model, {'head.weight': torch.ones(2, 2)})
    torch.testing.assert_close(model['backbone'](tiny.images()), before)


def test_a_trained_checkpoint_cannot_run_at_another_timestep():
    model = backbone(timestep=80)
    with pytest.warns(UserWarning, match='fixes timestep=80'), pytest.raises(ValueError, match='leave backbone.timestep open'):
        model.load_state_dict(backbone(1, timestep=50, frozen=False).state_dict())


@pytest.mark.parametrize('options, message', [
    (dict(fold=False), 'with backbone.fold=True'), (dict(taps=[(1, 'key'), (2, 'hidden')], timestep=50), None),
    (dict(taps=[(3, 'hidden')]), 'folded for other taps'), (dict(taps=[(1, 'key')]), 'folded for other taps')])
def test_a_folded_checkpoint_is_refused_where_it_does_not_fit(options, message):
    model, state = backbone(**options), backbone(timestep=50).state_dict()
    if message is None:  # a middle block has all taps
        model.load_state_dict(state)
        return
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state)


# torch.compile


@pytest.mark.skipif(tiny.OLD_TORCH, reason='refused')
@pytest.mark.parametrize('frozen', [True, False])
def test_a_compiled_backbone_compiles_once_and_stores_the_same(frozen):
    torch._dynamo.reset()
    plain, model = backbone(frozen=frozen), backbone(frozen=frozen, compile=dict(backend='eager', fullgraph=True))
    for each in (plain, model):
        each.select(50)
    assert model.state_dict().keys() == plain.state_dict().keys()
    counters.clear()
    for _ in range(3):
        for mode in (True, False):
            with torch.set_grad_enabled(mode):
                torch.testing.assert_close(model.train(mode)(tiny.images()), plain.train(mode)(tiny.images()))
    assert counters['stats']['unique_graphs'] == (1 if frozen else 2)  # with gradients, and without
    torch._dynamo.reset()


# Runs


def options(frozen, **changes):
    return {'model.backbone.frozen': frozen, 'model.neck.norm': None, **changes}


def state_of(folder, name='iter_2.pth'):
    return torch.load(folder / name, map_location='cpu', weights_only=False)['state_dict']


@pytest.mark.slow
def test_fine_tuning_resumes_bit_for_bit(data, tmp_path):
    """From the choice over a checkpoint to the end, in one go and in two."""
    torch.manual_seed(0)
    start = runs.runner(SEG, data, tmp_path / 'start', options(False))
    torch.save(start.model.state_dict(), tmp_path / 'start.pth')  # whole, before the choice
    common = options(False, load_from=str(tmp_path / 'start.pth'), **{
        'randomness.seed': 3, 'train_cfg.val_interval': 4, 'default_hooks.checkpoint.max_keep_ckpts': 4,
        'train_dataloader.dataset.pipeline.2.prob': 0.0})  # MMEngine does not resume the random state of transforms
    runs.runner(SEG, data, tmp_path / 'one', {**common, 'train_cfg.max_iters': 4}).train()
    halves = tmp_path / 'two'
    runs.runner(SEG, data, halves, {**common, 'train_cfg.max_iters': 2}).train()
    first, half = state_of(tmp_path / 'one'), state_of(halves)
    assert first.keys() == half.keys() and all(torch.equal(first[key], half[key]) for key in first)
    resumed = runs.runner(SEG, data, halves, {**common, 'train_cfg.max_iters': 4, 'load_from': None, 'resume': True})
    resumed.train()
    one, two = state_of(tmp_path / 'one', 'iter_4.pth'), state_of(halves, 'iter_4.pth')
    moved = [key for key in one if 'extractor.family' in key and not torch.equal(one[key], half[key])]
    assert any('modulation' in key for key in moved) and any('qkv' in key for key in moved)
    assert not any('model.' in key or 'vit.' in key for key in one if key.startswith('backbone'))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize('begin', quick([0, 2], [0]))
def test_an_averaged_model_of_a_fine_tuning_folds(begin, data, tmp_path):
    cfg = runs.config(SEG, data, tmp_path, options(False))
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.5, begin_iter=begin))
    runs.Runner.from_cfg(cfg).train()
    checkpoint = torch.load(tmp_path / 'iter_2.pth', map_location='cpu', weights_only=False)
    trained, average = checkpoint['ema_state_dict'], checkpoint['state_dict']  # which EMAHook swaps
    key = 'backbone.extractor.family.blocks.0.qkv.weight'
    first = torch.load(tmp_path / 'iter_1.pth', map_location='cpu', weights_only=False)['ema_state_dict'][f'module.{key}']
    expected = 0.5 * (first + trained[f'module.{key}']) if begin == 0 else trained[f'module.{key}']
    torch.testing.assert_close(average[key], expected, rtol=0, atol=1e-6)
    cfg = runs.config(SEG, data, tmp_path / 'test', options(False, load_from=str(tmp_path / 'iter_2.pth')))
    runner = runs.Runner.from_cfg(cfg)
    runner.test()
    assert torch.equal(runner.model.state_dict()[key].cpu(), average[key])
