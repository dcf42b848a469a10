"""The sweep runs when a choice is due, once, and at no other time; its outcome is kept and nothing else is touched."""
import copy
import json
import random
import shutil
import sys
from types import SimpleNamespace

import by_hand
import numpy as np
import pytest
import runs
import torch
from diffusers import DDIMScheduler, DiTPipeline
from marks import quick
from mmengine.config import ConfigDict
from mmengine.runner import Runner
from PIL import Image

from mmaselect.openmm import AutoTimestepHook, sweep_images
from mmaselect.openmm import hook as module
from mmaselect.openmm.backbone import DiTBackbone
from mmaselect.selection import SelectionResult

SEG, CLS = 'aselect_fashion_scenes', 'aselect_cub'


def watch(patch):
    """A list that gets 'sweep' and 'forward' as they happen."""
    events, sweep, forward = [], module.sweep, DiTBackbone.forward

    def sweeping(*args, **kwargs):
        events.append('sweep')
        return sweep(*args, **kwargs)

    def going_forward(self, inputs):
        events.append('forward')
        return forward(self, inputs)

    patch.setattr(module, 'sweep', sweeping)
    patch.setattr(DiTBackbone, 'forward', going_forward)
    return events


def with_hook(data, folder, changes=None, **options):
    """A runner of the segmentor whose hook has these options."""
    cfg = runs.config(SEG, data, folder, changes)
    cfg.custom_hooks = [dict(type='mmaselect.AutoTimestepHook', **options)]
    return runs.Runner.from_cfg(cfg)


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, AutoTimestepHook))


@pytest.fixture
def events(monkeypatch):
    return watch(monkeypatch)


def train(name, data, folder):
    with pytest.MonkeyPatch.context() as patch:
        events = watch(patch)
        runner = runs.runner(name, data, folder)
        runner.train()
    last = folder / ('iter_2.pth' if name == SEG else 'epoch_1.pth')
    return SimpleNamespace(runner=runner, folder=folder, events=events, checkpoint=last, chosen=runner.model.backbone.chosen)


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A segmentor after two iterations and a validation."""
    with runs.blank_curves(draw=True):
        return train(SEG, data, tmp_path_factory.mktemp('seg'))


@pytest.fixture(scope='module')
def classifier(data, tmp_path_factory):
    return train(CLS, data, tmp_path_factory.mktemp('cls'))


def read(path):
    return torch.load(path, map_location='cpu', weights_only=False)


# Once, and before it is needed


def test_one_sweep_before_the_first_forward(trained):
    assert trained.events[:2] == ['sweep', 'forward'] and trained.events.count('sweep') == 1
    assert trained.events.count('forward') == 2 + 1  # two iterations, one batch of validation


def test_the_choice_is_written_and_kept(trained):
    result = SelectionResult.load(trained.folder / 'timestep_selection.json')
    assert result.timestep == trained.chosen == by_hand.choice(result)
    assert result.score['type'] == 'cell_consistency' and result.taps == ((1, 'value'), (2, 'value'), (3, 'value'))
    assert [c.timestep for c in result.candidates] == [40, 150, 600] and result.num_images == runs.TRAIN
    with Image.open(trained.folder / 'timestep_selection.png') as plot:
        assert np.asarray(plot.convert('L')).std() > 1
    assert int(read(trained.checkpoint)['state_dict']['backbone.timestep']) == trained.chosen


def test_the_log_and_the_visualizer_have_it(trained):
    log, = trained.folder.glob('*/*.log')
    assert f'selected timestep t={trained.chosen} ' in log.read_text()
    assert 'timestep_selection' not in (log.parent / 'vis_data' / 'scalars.json').read_text()  # see test_analyze_logs
    assert list((log.parent / 'vis_data' / 'vis_image').glob('timestep_selection*.png'))


def test_tensorboard_has_it(data, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    runner = runs.runner(SEG, data, tmp_path, {'visualizer.vis_backends': backends})
    result = AutoTimestepHook().select(runner)
    runner.visualizer.close()
    events = EventAccumulator(str(next(tmp_path.rglob('events.out*')).parent)).Reload()
    curve = {event.step: event.value for event in events.Scalars('timestep_selection/cell_consistency')}
    assert curve == pytest.approx({c.timestep: c.score for c in result.candidates})
    drawn, = events.Images('timestep_selection')
    assert (drawn.width, drawn.height) == (700, 400)


def test_wandb_gets_the_timestep_as_the_axis(data, tmp_path, monkeypatch):
    """Its backend ignores the step of a scalar."""
    logged, axes = [], {}
    wandb = SimpleNamespace(init=lambda **options: None, log=lambda entry, commit: logged.append(entry), Image=lambda image: None,
                            define_metric=lambda name, step_metric: axes.update({name: step_metric}), finish=lambda: None,
                            config=SimpleNamespace(update=lambda *args, **kwargs: None),
                            run=SimpleNamespace(log_code=lambda **kwargs: None), join=lambda: None)
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    runner = runs.runner(SEG, data, tmp_path, {'visualizer.vis_backends': [dict(type='WandbVisBackend')]})
    result = AutoTimestepHook().select(runner)
    name, axis = f"timestep_selection/{result.score['type']}", 'timestep_selection/timestep'
    assert axes == {name: axis}
    assert [entry for entry in logged if name in entry] == [{axis: c.timestep, name: c.score} for c in result.candidates]


def test_training_goes_as_if_the_timestep_had_been_fixed(trained, data, tmp_path, events):
    """So the sweep touches no random state, no weights and no statistics of the head."""
    runner = runs.runner(SEG, data, tmp_path, {'model.backbone.timestep': trained.chosen})
    runner.train()
    assert 'sweep' not in events
    expected = trained.runner.model.state_dict()
    for key, value in runner.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0, msg=lambda text, key=key: f'{key}: {text}')


def test_a_fixed_timestep_means_no_sweep(data, tmp_path, events):
    runner = runs.runner(SEG, data, tmp_path, {'model.backbone.timestep': 77})
    runner.test()
    assert runner.model.backbone.chosen == 77 and events == ['forward']
    assert not (tmp_path / 'timestep_selection.json').exists()


def test_resuming_keeps_the_choice(trained, data, tmp_path, events):
    folder = tmp_path / 'run'
    folder.mkdir()
    shutil.copy(trained.checkpoint, folder)
    (folder / 'last_checkpoint').write_text(str(folder / trained.checkpoint.name))
    # Other candidates: a second sweep could not give the same timestep.
    changes = {'resume': True, 'train_cfg.max_iters': 4, 'train_cfg.val_interval': 4, 'model.neck.selection.candidates': [7, 8]}
    runner = runs.runner(SEG, data, folder, changes)
    runner.train()
    assert runner.iter == 4 and runner.model.backbone.chosen == trained.chosen
    assert events == ['forward'] * 3
    assert not (folder / 'timestep_selection.json').exists()


def test_testing_a_checkpoint_keeps_its_choice(trained, data, tmp_path, events):
    runner = runs.runner(SEG, data, tmp_path, {'load_from': str(trained.checkpoint), 'model.neck.selection.candidates': [7, 8]})
    metrics = runner.test()
    assert runner.model.backbone.chosen == trained.chosen and events == ['forward']
    assert metrics['mIoU'] == pytest.approx(trained.runner.message_hub.log_scalars['val/mIoU'].current())


@pytest.mark.parametrize('loop', ['test', 'val'])
def test_a_fresh_model_is_swept_before_it_is_evaluated(loop, data, tmp_path, events):
    runner = runs.runner(CLS, data, tmp_path)
    getattr(runner, loop)()
    result = SelectionResult.load(tmp_path / 'timestep_selection.json')
    assert runner.model.backbone.chosen == by_hand.choice(result) and events == ['sweep', 'forward']


def reselect(checkpoint, **changes):
    return {'load_from': str(checkpoint), 'custom_hooks.0.reselect': True, 'model.neck.selection.candidates': [7, 8], **changes}


@pytest.mark.parametrize('fold', [True, False])
def test_reselect_chooses_anew_once(fold, data, tmp_path, events):
    """A folded DiT is loaded again for it, which takes weights that are to be had; one that is not folded is swept as it is."""
    extractor = runs.tiny.extractor()
    DiTPipeline(extractor.family.model, extractor.encoder.vae, DDIMScheduler()).save_pretrained(tmp_path / 'dit')
    changes = {'model.backbone.arch': None, 'model.backbone.pretrained': str(tmp_path / 'dit'), 'model.backbone.fold': fold}
    runs.runner(SEG, data, tmp_path / 'first', changes).train()
    events.clear()
    checkpoint = tmp_path / 'first' / 'iter_2.pth'
    changes |= reselect(checkpoint, **{'train_cfg.val_interval': 1})
    runner = runs.runner(SEG, data, tmp_path / 'second', changes)
    runner.train()
    assert events == ['sweep'] + ['forward'] * 4  # train, val, train, val
    result = SelectionResult.load(tmp_path / 'second' / 'timestep_selection.json')
    assert runner.model.backbone.chosen == by_hand.choice(result) and [c.timestep for c in result.candidates] == [7, 8]
    assert runner.model.backbone.extractor.timesteps == ((runner.model.backbone.chosen,) if fold else None)
    assert int(read(tmp_path / 'second' / 'iter_2.pth')['state_dict']['backbone.timestep']) == runner.model.backbone.chosen


def test_reselect_refuses_a_folded_dit_whose_weights_are_lost(trained, data, tmp_path):
    runner = runs.runner(SEG, data, tmp_path, reselect(trained.checkpoint))
    with pytest.raises(ValueError, match='cannot run at another, since its weights.*set backbone.fold=False'):
        runner.train()


# Wrapped models


def with_tta(cfg):
    """As the test tools of the toolboxes do for --tta."""
    if cfg.default_scope == 'mmpretrain':
        pipeline = cfg.test_dataloader.dataset.pipeline
        flips = [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)]
        cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
        cfg.tta_pipeline = [*pipeline[:-1], dict(type='TestTimeAug', transforms=[flips, [pipeline[-1]]])]
    cfg.test_dataloader.dataset.pipeline = copy.deepcopy(cfg.tta_pipeline)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    return cfg


@pytest.mark.parametrize('name', [SEG, CLS])
def test_test_time_augmentation_of_a_checkpoint(name, data, tmp_path, events, request, evaluated):
    trained = request.getfixturevalue('trained' if name == SEG else 'classifier')
    events.clear()  # of that training
    cfg = with_tta(runs.config(name, data, tmp_path, {'load_from': str(trained.checkpoint)}))
    runner = runs.Runner.from_cfg(cfg)
    metrics = runner.test()
    assert runner.model.module.backbone.chosen == trained.chosen
    assert len(events) == 2 * len(runner.test_dataloader) and 'sweep' not in events  # both flips
    assert metrics['mIoU' if name == SEG else 'accuracy/top1'] == pytest.approx(evaluated.metric(), abs=0.006)


@pytest.mark.parametrize('name', [SEG, CLS])
def test_test_time_augmentation_of_a_fresh_model(name, data, tmp_path, events):
    runner = runs.Runner.from_cfg(with_tta(runs.config(name, data, tmp_path)))
    runner.test()
    assert events == ['sweep', 'forward', 'forward']


@pytest.mark.parametrize('options', quick([{}, dict(update_buffers=True), dict(begin_iter=2)],
                                          lambda options: 'update_buffers' in options), ids=str)
def test_an_averaged_model_carries_the_choice(options, data, tmp_path, events):
    cfg = runs.config(SEG, data, tmp_path)
    cfg.custom_hooks.append(dict(type='EMAHook', **options))
    runner = runs.Runner.from_cfg(cfg)
    runner.train()
    checkpoint, chosen = read(tmp_path / 'iter_2.pth'), runner.model.backbone.chosen
    assert int(checkpoint['ema_state_dict']['module.backbone.timestep']) == chosen
    assert int(checkpoint['state_dict']['backbone.timestep']) == chosen
    events.clear()
    cfg = runs.config(SEG, data, tmp_path / 'test', {'load_from': str(tmp_path / 'iter_2.pth')})
    cfg.custom_hooks.append(dict(type='EMAHook', **options))
    runner = runs.Runner.from_cfg(cfg)
    runner.test()
    assert runner.model.backbone.chosen == chosen and events == ['forward']


def test_an_averaged_model_gets_a_fresh_choice(data, tmp_path, events):
    """EMAHook copies the model before the sweep, and with update_buffers evaluation sees the copy's buffers."""
    cfg = runs.config(SEG, data, tmp_path)
    cfg.custom_hooks.append(dict(type='EMAHook', update_buffers=True))
    runs.Runner.from_cfg(cfg).test()
    assert events == ['sweep', 'forward']


# What it refuses


def test_a_model_that_cannot_choose_says_what_to_do(data, tmp_path):
    cfg = runs.config(CLS, data, tmp_path)
    cfg.model.neck = dict(type='GlobalAveragePooling')
    with pytest.raises(ValueError, match='no timestep is chosen .*add it to model.neck .*or fix backbone.timestep'):
        runs.Runner.from_cfg(cfg).train()
    assert not list(tmp_path.glob('timestep_selection*')) and not list(tmp_path.glob('*.pth'))


def test_a_model_without_the_backbone_is_refused():
    runner = SimpleNamespace(model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match='found no DiTBackbone'):
        AutoTimestepHook().before_train(runner)


def test_a_config_without_training_images_says_what_to_do(data, tmp_path):
    runner = runs.runner(CLS, data, tmp_path, {'train_dataloader': None, 'train_cfg': None, 'optim_wrapper': None,
                                               'param_scheduler': None})
    with pytest.raises(ValueError, match='takes its images from train_dataloader, which this config lacks: fix'):
        runner.test()


def test_an_empty_training_set_is_named(data, tmp_path):
    folder = tmp_path / 'nothing'
    for kind in ('img_dir', 'ann_dir'):
        (folder / kind / 'train').mkdir(parents=True)
    runner = runs.runner(SEG, data, tmp_path / 'run', {'train_dataloader.dataset.data_root': str(folder)})
    with pytest.raises(ValueError, match='training set is empty: .*nothing has no images'):
        runner.test()
    assert not list((tmp_path / 'run').glob('timestep_selection*'))


# A result that is there


def test_a_result_is_taken_in_place_of_a_sweep(trained, data, tmp_path, events):
    """Of the same weights, taps and options, whose random weights are those of the seed."""
    file = str(trained.folder / 'timestep_selection.json')
    runner = with_hook(data, tmp_path, result=file)
    result = hook_of(runner).select(runner)
    assert 'sweep' not in events and runner.model.backbone.chosen == result.timestep == trained.chosen
    assert not (tmp_path / 'timestep_selection.json').exists()


@pytest.mark.parametrize('changes, what', [
    ({'model.neck.selection.score_taps': [(1, 'query')]}, 'its taps: '),
    ({'model.neck.selection.candidates': [40, 600]}, r'its candidates: \[40, 150, 600\] there, \[40, 600\] here'),
    ({'model.neck.selection.score': 'hfr'}, "its score: 'auto' there, 'hfr' here"),
    ({'model.backbone.noise': 'none'}, "its noise: 'seeded' there, 'none' here"),
    ({'model.backbone.noise_draws': 2}, 'its draws: 1 there, 2 here'),
    ({'model.backbone.pos_scale': 'extrapolate'}, "its pos_scale: 'interpolate' there, 'extrapolate' here"),
    ({'randomness.seed': 5}, 'its weights: '),
])
def test_a_result_of_other_weights_or_options_is_refused(changes, what, trained, data, tmp_path, events):
    runner = with_hook(data, tmp_path, changes, result=str(trained.folder / 'timestep_selection.json'))
    with pytest.raises(ValueError, match=f'cannot take result=.*{what}'):
        hook_of(runner).select(runner)
    assert not events and runner.model.backbone.chosen is None


def another_schedule(found):
    found['candidates'][1]['sigma'] /= 2


@pytest.mark.parametrize('change, what', [
    (lambda found: found['score'].pop('cells'), 'options of the score'),  # files from before it was there had its former value
    (another_schedule, 'noise level at t=150')])
def test_a_result_of_a_score_or_schedule_that_has_changed_is_refused(change, what, trained, data, tmp_path, events):
    found = json.loads((trained.folder / 'timestep_selection.json').read_text())
    change(found)
    (tmp_path / 'old.json').write_text(json.dumps(found))
    runner = with_hook(data, tmp_path, result=str(tmp_path / 'old.json'))
    with pytest.raises(ValueError, match=f'cannot take result=.*its {what}: '):
        hook_of(runner).select(runner)
    assert not events and runner.model.backbone.chosen is None


def test_a_run_killed_after_its_sweep_takes_its_result_when_it_is_resumed(data, tmp_path, events):
    def resumed(changes=None):
        runner = with_hook(data, tmp_path, changes, resume=True)
        hook_of(runner).select(runner)
        return runner.model.backbone.chosen
    chosen = resumed()
    assert events == ['sweep']
    assert resumed() == chosen and events == ['sweep']
    resumed({'model.neck.selection.candidates': [7, 8]})  # does not fit, and is made anew
    assert events == ['sweep', 'sweep']


# Its precision


def test_the_sweep_has_the_precision_of_the_training(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(module, 'sweep', lambda *args, **options: seen.append(torch.get_autocast_cpu_dtype() if
                        torch.is_autocast_cpu_enabled() else None) or (_ for _ in ()).throw(InterruptedError))
    runner = runs.runner(SEG, data, tmp_path)
    for wrapper in (dict(type='OptimWrapper'), dict(type='AmpOptimWrapper', dtype='bfloat16')):
        runner.cfg.optim_wrapper = ConfigDict(wrapper)
        with pytest.raises(InterruptedError):
            AutoTimestepHook().select(runner)
    assert seen == [None, torch.bfloat16]


# The images


def sample(runner, num_images=6, size=(32, 32), seed=0):
    """Index -> image, in the order in which the sweep gets them."""
    batches = sweep_images.SweepImages(runner.cfg, runner.model, num_images, size, seed).batches(0, num_images)
    return {index: image for indices, stack, _ in batches for index, image in zip(indices, stack, strict=True)}


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_random_state_is_left_alone_also_by_random_transforms(trained, data, tmp_path):
    runner = runs.runner(SEG, data, tmp_path)
    runner.cfg.val_dataloader = runner.cfg.test_dataloader = None  # leaves the training pipeline, which flips
    runner.cfg.train_dataloader.dataset.pipeline.insert(-1, dict(type='PhotoMetricDistortion'))
    before = states()
    AutoTimestepHook().select(runner)
    assert states() == before
    first = sample(runner)
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    again = sample(runner)
    assert all(torch.equal(first[index], again[index]) for index in first)


def test_worker_processes_give_the_same_images(data, tmp_path):
    runner = runs.images_of(SEG, data, tmp_path)
    runner.cfg.val_dataloader = runner.cfg.test_dataloader = None
    alone = sample(runner)
    runner.cfg.train_dataloader.num_workers = 2
    before = states()
    shared = sample(runner)
    assert states() == before
    assert list(alone) == list(shared) and all(torch.equal(alone[index], shared[index]) for index in alone)


def test_images_are_those_of_validation_cut_to_the_crop_size(data, tmp_path):
    larger = {'val_dataloader.dataset.pipeline.1.scale': (128, 40)}  # than the crop, on both edges
    runner = runs.images_of('aselect_ade20k', data, tmp_path, larger)
    whole, cut = sample(runner, size=None), sample(runner)
    assert len({image.shape for image in whole.values()}) > 1  # else this shows nothing
    assert {image.shape for image in cut.values()} == {(3, 32, 32)}
    for index, image in whole.items():
        top, left = ((side - 32) // 2 for side in image.shape[1:])
        assert torch.equal(cut[index], image[:, top:top + 32, left:left + 32])
        assert image.shape[1] == 40 or image.shape[2] == 40  # the short edge that validation resizes to
        assert -1 <= image.min() < -0.1 or 0.1 < image.max() <= 1


def test_the_sweep_takes_the_crop_size_from_the_data_preprocessor(data, tmp_path, monkeypatch):
    seen = []

    def sweep(extractor, images, policy, **_):
        seen.extend(stack.shape for _, stack, _ in images.batches(0, len(images)))
        raise InterruptedError

    monkeypatch.setattr(module, 'sweep', sweep)
    for size, side in ((None, 32), (24, 24), ((24, 24), 24)):
        seen.clear()
        runner = runs.runner('aselect_ade20k', data, tmp_path, {'model.neck.selection.image_size': size})
        with pytest.raises(InterruptedError):
            runner.val()
        assert {tuple(shape[1:]) for shape in seen} == {(3, side, side)}
        assert sum(shape[0] for shape in seen) == runs.TRAIN


def test_a_set_sorted_by_class_is_sampled_across_it(data, tmp_path):
    runner = runs.images_of(CLS, data, tmp_path)
    labels = Runner.build_dataloader(runner.cfg.train_dataloader).dataset.get_gt_labels()
    assert list(labels) == sorted(labels)
    chosen = sample(runner, num_images=6)
    assert len({labels[index] for index in chosen}) >= 3  # the first six are of two
    assert list(chosen) == list(sample(runner, num_images=6)) != list(sample(runner, num_images=6, seed=1))


def test_ranks_share_the_images_of_one(data, tmp_path, monkeypatch):
    runner = runs.images_of('aselect_ade20k', data, tmp_path)
    alone = sample(runner, num_images=5)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(sweep_images, 'get_dist_info', lambda rank=rank: (rank, 2))
        shares.append(sample(runner, num_images=5))
    assert sorted(map(len, shares)) == [2, 3] and not shares[0].keys() & shares[1].keys()
    together = shares[0] | shares[1]
    assert alone.keys() == together.keys() and all(torch.equal(alone[index], together[index]) for index in alone)


@pytest.mark.parametrize('wrap, share', [
    (lambda d: dict(type='RepeatDataset', times=2, dataset=d), 1),
    (lambda d: dict(type='ClassBalancedDataset', oversample_thr=1.0, dataset=d), 1),
    (lambda d: dict(type='ConcatDataset', datasets=[d, copy.deepcopy(d)]), 1),
    (lambda d: dict(type='ConcatDataset', datasets=[d, dict(type='RepeatDataset', times=3, dataset=copy.deepcopy(d))]), 1),
    (lambda d: dict(type='MultiImageMixDataset', dataset=d, pipeline=[dict(type='mmseg.RandomMosaic', prob=1)]), 1),
    (lambda d: dict(type='RepeatDataset', times=2, dataset=dict(type='KFoldDataset', fold=0, num_splits=2, dataset=d)), 1 / 2),
    (lambda d: d, 1),
], ids=['repeat', 'balanced', 'concat', 'both', 'mix', 'k-fold', 'plain'])
def test_wrapped_sets_give_each_image_once_through_the_pipeline_of_validation(wrap, share, data, tmp_path):
    """Copies of an image would tell a leave-one-out probe what the image is."""
    runner = runs.images_of(CLS, data, tmp_path)
    plain = runner.cfg.train_dataloader.dataset
    before = copy.deepcopy(plain.to_dict())
    expected = list(sample(runner, num_images=100).values())
    runner.cfg.train_dataloader.dataset = ConfigDict(wrap(plain))
    found = list(sample(runner, num_images=100).values())
    assert len(found) == share * len(expected)
    assert all(sum(torch.equal(image, other) for other in expected) == 1 for image in found)
    assert plain.to_dict() == before  # training keeps its own pipeline


def test_a_wrapped_validation_set_gives_its_pipeline(data, tmp_path):
    """Else the sweep would look at images that are augmented."""
    cfg = runs.config(SEG, data, tmp_path)
    cfg.val_dataloader.dataset = ConfigDict(type='RepeatDataset', times=2, dataset=cfg.val_dataloader.dataset)
    cfg.test_dataloader = None
    assert sweep_images.dataset_config(cfg).pipeline == cfg.val_dataloader.dataset.dataset.pipeline
    cfg.val_dataloader = None
    with pytest.warns(UserWarning, match='looks at images of the training pipeline'):
        assert sweep_images.dataset_config(cfg).pipeline == cfg.train_dataloader.dataset.pipeline


def test_a_pipeline_of_test_time_augmentation_is_passed_over(data, tmp_path):
    cfg = with_tta(runs.config(SEG, data, tmp_path))
    cfg.val_dataloader.dataset.pipeline = cfg.tta_pipeline
    with pytest.warns(UserWarning, match='looks at images of the training pipeline'):
        assert sweep_images.dataset_config(cfg).pipeline == cfg.train_dataloader.dataset.pipeline


def test_transforms_may_be_given_as_classes(data, tmp_path):
    """As in MMEngine's configs in pure Python style."""
    from mmcv.transforms import LoadImageFromFile
    runner = runs.images_of(SEG, data, tmp_path)
    expected = sample(runner)
    runner.cfg.val_dataloader.dataset.pipeline[0] = dict(type=LoadImageFromFile)
    found = sample(runner)
    assert all(torch.equal(found[index], image) for index, image in expected.items())
