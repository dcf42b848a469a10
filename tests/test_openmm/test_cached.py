"""Training on cached latents and features gives what training on the images does, and caches that do not fit are refused."""
import os

import numpy as np
import pytest
import runs
import torch
from marks import quick
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from mmaselect.extract import Extractor
from mmaselect.extract.shards import Cache, write
from mmaselect.openmm import AutoTimestepNeck, CachedFeatures, FlipLatents, LoadFeatures, LoadLatents
from mmaselect.openmm.transforms import contents, identity
from mmaselect.registry import MODELS

SEG, CLS, ADE, CUB = 'aselect_fashion_scenes', 'aselect_fashion_mnist', 'aselect_ade20k', 'aselect_cub'
LATENTS, FEATURES = runs.ROOT / 'tools' / 'cache_latents.py', runs.ROOT / 'tools' / 'cache_features.py'
CONFIGS = runs.ROOT / 'configs' / 'cached'
TIMESTEP = {'model.backbone.timestep': 40}
LONGER = {'train_cfg.max_iters': 6, 'train_cfg.val_interval': 6}
FOUR_MAPS = {'model.backbone.taps': [(1, 'hidden'), (2, 'query')], 'model.neck.num_taps': 2, 'model.backbone.num_timesteps': 2,
             'model.neck.selection.num_timesteps': 2, 'model.head.in_channels': 4 * runs.WIDTH * runs.GRID**2}
TIMESTEPS = {'model.backbone.timestep': [40, 600]}
EPOCHS = {'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 3}


def tool(script, name, data, *arguments, **changes):
    """What a tool printed that wrote a cache of a shipped config's tiny version."""
    changes = {key.replace('__', '.'): value for key, value in changes.items()}
    return runs.run_here(script, runs.CONFIGS[name], *arguments, *runs.words({**runs.options(name, data), **changes}))


def cached(kind, name, data, cache, work_dir, changes):
    """A Runner of the tiny version of a config in configs/cached."""
    runs.forget()
    cfg = Config.fromfile(CONFIGS / f'{kind}_{name.partition("_")[2]}.py')
    options = {**runs.options(name, data), **changes}
    dropped = ('model.data_preprocessor', *(() if kind == 'latents' else ('model.backbone', )))
    options = {key: value for key, value in options.items() if not key.startswith(dropped) and '.pipeline.' not in key}
    folder = {'latents': 'latents', 'linear_probe': 'cache'}[kind]
    cfg.merge_from_dict({**options, f'model.backbone.{folder}': str(cache), 'work_dir': str(work_dir), **{
        f'{loader}_dataloader.dataset.pipeline.0.cache': str(cache / split)
        for loader, split in (('train', 'train'), ('val', 'val'), ('test', 'val'))}})
    return runs.Runner.from_cfg(cfg)


def train(runner):
    runner.train()
    return runner


def assert_same_training(ours, theirs, metric, part):
    """Losses of all iterations, the evaluation, and the weights that were trained."""
    logged = [run.message_hub.log_scalars for run in (ours, theirs)]
    for name in ('train/loss', f'val/{metric}'):
        own, other = (hub[name].data[0] for hub in logged)
        assert len(own) == len(other) > 0
        np.testing.assert_allclose(own, other, rtol=2e-5)
    own, other = (getattr(run.model, part).state_dict() for run in (ours, theirs))
    assert own.keys() == other.keys()
    for key, value in own.items():
        torch.testing.assert_close(value, other[key], rtol=2e-4, atol=2e-5, msg=key)


# Latents


@pytest.fixture(scope='module')
def scenes(data, tmp_path_factory):
    """A cache of the tiny scenes, with everything."""
    folder = tmp_path_factory.mktemp('latents')
    tool(LATENTS, SEG, data, '--out', folder, '--work-dir', folder.with_name('work'), '--flip', '--std', '--batch-size', 4)
    return folder


def test_segmentation_on_cached_latents_is_the_same(scenes, data, tmp_path, monkeypatch):
    theirs = train(runs.runner(SEG, data, tmp_path / 'images', {**TIMESTEP, **LONGER}))
    runner = cached('latents', SEG, data, scenes, tmp_path / 'latents', {**TIMESTEP, **LONGER})
    flips, transform = [], FlipLatents.transform

    def noted(self, results):
        results = transform(self, results)
        flips.append(results['flip'])
        return results

    monkeypatch.setattr(FlipLatents, 'transform', noted)
    monkeypatch.setattr(runner.model.backbone.extractor.encoder, 'posterior', None)  # the VAE does not run
    assert_same_training(train(runner), theirs, 'mIoU', 'decode_head')
    assert 0 < sum(flips) < len(flips)


def test_classification_on_cached_latents_is_the_same(data, tmp_path):
    printed = tool(LATENTS, CLS, data, '--out', tmp_path / 'cache', '--work-dir', tmp_path / 'work', '--split', 'train',
                   'val', 'test')
    assert not (tmp_path / 'cache' / 'test').exists() and 'RandomFlip' not in printed  # test is val
    theirs = train(runs.runner(CLS, data, tmp_path / 'images', {**TIMESTEP, **EPOCHS}))
    ours = train(cached('latents', CLS, data, tmp_path / 'cache', tmp_path / 'latents', {**TIMESTEP, **EPOCHS}))
    assert_same_training(ours, theirs, 'accuracy/top1', 'head')


def test_latents_are_those_of_the_images_and_of_the_flipped_ones(scenes, data, tmp_path):
    runner = runs.runner(SEG, data, tmp_path, TIMESTEP)
    dataset, cache = runner.build_dataloader(runner.cfg.val_dataloader).dataset, Cache(scenes / 'val', 'latents')
    assert len(cache) == len(dataset) == runs.VAL
    images = runner.model.data_preprocessor(pseudo_collate([dataset[place] for place in range(len(dataset))]), False)['inputs']
    encoder = runner.model.backbone.extractor.encoder
    for name, seen in (('', images), ('flipped ', images.flip(-1))):
        for kind, values in zip(('mean', 'std'), encoder.posterior(seen), strict=True):
            stored = torch.stack([cache.read(place, f'{name}{kind}') for place in range(len(dataset))])
            torch.testing.assert_close(stored, values.cpu(), rtol=1e-6, atol=1e-6)


def test_a_second_call_does_nothing_and_another_model_is_refused(scenes, data, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in scenes.rglob('*.safetensors')}
    (tmp_path / 'moved').symlink_to(data / 'fashion_scenes')
    arguments = ('--out', scenes, '--work-dir', tmp_path, '--flip', '--std')
    assert 'RandomFlip is left out' not in tool(LATENTS, SEG, data, *arguments)
    for option, value, reason in (('randomness__seed', 1, 'a cache of other vae:'),
                                  ('model__backbone__vae_dtype', 'bfloat16', 'a cache of other vae, vae_dtype:'),
                                  ('train_dataloader__dataset__data_root', tmp_path / 'moved', 'a cache of other dataset:'),
                                  ('model__data_preprocessor__std', [100.0] * 3, 'a cache of other data_preprocessor:')):
        with pytest.raises(SystemExit):
            tool(LATENTS, SEG, data, *arguments, **{option: value})
        assert reason in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in scenes.rglob('*.safetensors')}


def test_a_sample_is_drawn_from_the_posterior(scenes):
    load, cache = LoadLatents(str(scenes / 'val'), draw='sample'), Cache(scenes / 'val', 'latents')
    info = dict(sample_idx=1, img_path='img_dir/val/000001.png')
    torch.manual_seed(0)
    drawn = torch.stack([torch.from_numpy(load(dict(info))['img']).permute(2, 0, 1) for _ in range(400)])
    mean, std = cache.read(1, 'mean'), cache.read(1, 'std')
    assert ((drawn.mean(0) - mean).abs() < 5 * std / 20).all()
    torch.testing.assert_close(drawn.std(0), std, rtol=0.25, atol=0)


@pytest.mark.parametrize('info, reason', [
    (dict(sample_idx=1, img_path='img_dir/val/000002.png'), 'was made from another image'),
    (dict(sample_idx=1, img_path='img_dir/train/000001.png'), 'was made from another image'),
    (dict(sample_idx=3, img_path='img_dir/val/000003.png'), 'has 3 items'),
    (dict(sample_idx=0), 'neither img_path nor img')])
def test_latents_of_other_images_are_refused(info, reason, scenes):
    with pytest.raises((ValueError, IndexError), match=reason):
        LoadLatents(str(scenes / 'val'))(info)


def test_images_written_anew_under_the_same_names_are_refused(tmp_path):
    image = tmp_path / 'images' / 'a.png'
    image.parent.mkdir()
    image.write_bytes(b'one image')
    info = dict(img_path=str(image), sample_idx=0)
    write(tmp_path / 'cache', 1, dict(kind='features', contents=True), lambda places: [dict(
        about=torch.tensor([identity(info), 4]), contents=torch.tensor(contents(info)), moments=torch.zeros(4, 2))])

    def load():
        return LoadFeatures(str(tmp_path / 'cache'))(dict(info))['img'].shape

    assert load() == (2, 1, 4)
    os.utime(image, ns=(1, 1))
    assert load() == (2, 1, 4)  # copied
    image.write_bytes(b'two image')  # of the same size
    with pytest.raises(ValueError, match='images/a.png as it was before: another image was written there since. Write the cache'):
        load()


def test_another_vae_is_refused_at_the_first_batch(scenes, data, tmp_path):
    runner = cached('latents', SEG, data, scenes, tmp_path, {**TIMESTEP, 'randomness.seed': 1})
    with pytest.raises(ValueError, match='made by a VAE of other weights.*write them again'):
        runner.train()


def test_images_in_place_of_latents_are_refused(scenes):
    backbone = MODELS.build(dict(type='mmaselect.DiTBackbone', arch=runs.tiny.ARCH, timestep=3, latents=str(scenes)))
    backbone._latents_checked = True
    with pytest.raises(ValueError, match=r'latents must be \(B, 4, h, w\) of whole patches of 2, not \(2, 3, 16, 16\)'):
        backbone(runs.tiny.images())


def test_the_sweep_wants_images(scenes, data, tmp_path):
    with pytest.raises(ValueError, match='the sweep looks at images.*choose first, with tools/select_timestep.py'):
        cached('latents', SEG, data, scenes, tmp_path, {'model.backbone.timestep': None}).train()


def test_flips_that_were_not_cached_are_named(data, tmp_path, monkeypatch):
    printed = tool(LATENTS, SEG, data, '--out', tmp_path / 'cache', '--work-dir', tmp_path / 'work')
    assert 'train: RandomFlip is left out of what is cached' in printed
    with pytest.raises(ValueError, match='flipped mean .*cached without'):
        cached('latents', SEG, data, tmp_path / 'cache', tmp_path / 'run', {**TIMESTEP, **LONGER}).train()
    with pytest.raises(ValueError, match='horizontally flipped images alone'):
        FlipLatents(prob=0.5, direction='vertical')


@pytest.mark.parametrize('name, arguments, changes, reason', [
    (CUB, ['--split', 'train'], {}, 'RandomCrop is random'),
    (ADE, ['--split', 'val'], {}, 'slides a window'),
    (SEG, ['--split', 'train'], {'model__data_preprocessor__size': (40, 32)}, 'pads images of'),
    (SEG, ['--split', 'train'], {'train_dataloader__dataset__pipeline__2__direction': 'vertical'}, 'RandomFlip can stay where'),
    (SEG, ['--launcher', 'pytorch'], {}, 'by one process'),
    (SEG, ['--checkpoint', 'nothing.pth'], {}, 'nothing.pth'),
    (SEG, ['--split', 'train', '--batch-size', '0'], {}, 'batch_size=0: an integer, at least one image'),
], ids=['random', 'slide', 'padded', 'vertical', 'processes', 'checkpoint', 'batch'])
def test_what_a_cache_cannot_follow_is_refused(name, arguments, changes, reason, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool(LATENTS, name, data, '--out', tmp_path / 'cache', '--work-dir', tmp_path, *arguments, **changes)
    assert reason in capsys.readouterr().err
    assert not list((tmp_path / 'cache').rglob('*.*'))


# Features


@pytest.fixture(scope='module')
def probe(data, tmp_path_factory):
    """A folder with a cache of features, and how many latents went through the DiT to make it."""
    folder, counts = tmp_path_factory.mktemp('features'), []
    forward = Extractor.features

    def counted(self, latent, *args):
        counts.append(len(latent))
        return forward(self, latent, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extractor, 'features', counted)
        tool(FEATURES, CLS, data, '--out', folder, '--work-dir', folder.with_name('probe_work'), '--batch-size', 3,
             **{**TIMESTEPS, **FOUR_MAPS})
    return folder, counts


def test_features_of_other_positions_are_refused(probe, data, tmp_path, capsys):
    for words, changes in (((), {'model.backbone.pos_scale': 'extrapolate'}), (('--amp',), {})):
        with pytest.raises(SystemExit):
            tool(FEATURES, CLS, data, '--out', probe[0], '--work-dir', tmp_path, *words,
                 **{**TIMESTEPS, **FOUR_MAPS, **changes})
        assert 'a cache of other model:' in capsys.readouterr().err


def started(changes, data, folder):
    """``changes`` that make a training begin with the same head, whatever was drawn from the generator before it."""
    head = runs.runner(CLS, data, folder, changes).model.head
    torch.save(dict(state_dict={f'head.{name}': value + 0.1 for name, value in head.state_dict().items()}), folder / 'head.pth')
    # Not by AdamW, which takes full steps where a gradient is nothing but rounding.
    return {**changes, 'load_from': str(folder / 'head.pth'), 'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=0.1)}


@pytest.mark.parametrize('norm', quick(['channel', None], ['channel']))
def test_a_head_on_cached_features_is_that_through_the_dit(norm, probe, data, tmp_path):
    folder, counts = probe
    assert sum(counts) == 2 * (8 + 8) and max(counts) == 3  # each image of both splits once at each timestep
    changes = started({**TIMESTEPS, **FOUR_MAPS, **EPOCHS, 'model.neck.norm': norm}, data, tmp_path)
    theirs = train(runs.runner(CLS, data, tmp_path / 'dit', changes))
    ours = train(cached('linear_probe', CLS, data, folder, tmp_path / 'probe', changes))
    assert isinstance(ours.model.backbone, CachedFeatures)
    for part in ('head', 'neck'):
        assert_same_training(ours, theirs, 'accuracy/top1', part)


def test_what_a_probe_saves_fits_the_config_with_the_dit(probe, data, tmp_path):
    changes = {**FOUR_MAPS, **EPOCHS}
    ours = train(cached('linear_probe', CLS, data, probe[0], tmp_path / 'probe', changes))
    whole = runs.runner(CLS, data, tmp_path / 'dit', {**changes, 'load_from': str(tmp_path / 'probe' / 'epoch_3.pth')})
    metrics = whole.test()
    assert whole.model.backbone.timesteps == (40, 600)  # the config leaves them open
    assert metrics['accuracy/top1'] == ours.message_hub.log_scalars['val/accuracy/top1'].current()
    theirs, own = whole.model.state_dict(), ours.model.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in own if key.startswith(('head.', 'neck.')))


def write_features(folder, maps, timestep=40, grid=(1, 1)):
    """A cache of one split as the tool writes it, of maps (N, D, h, w) of one tap."""
    rows, columns = grid
    parts = [part.flatten(2) for row in maps.chunk(rows, 2) for part in row.chunk(columns, 3)]  # each (N, D, cells)
    moments = torch.stack([part.mean(2) for part in parts] + [part.std(2, correction=0) for part in parts], 2)
    about = torch.tensor([identity(dict(img_path='a/b.png')), parts[0].shape[2]])
    model = dict(taps=[[0, 'key']], tap=[-1, -1], timesteps=[timestep], grid=list(grid))
    write(folder, len(maps), dict(kind='features', model=model),
          lambda places: [dict(about=about, moments=moments[place]) for place in places])
    load = LoadFeatures(str(folder))
    loaded = [load(dict(img_path='a/b.png', sample_idx=place))['img'] for place in range(len(maps))]
    return torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2)  # (N, D, 2, parts)


@pytest.mark.parametrize('height, width, grid', [
    (1, 1, (1, 1)), (1, 2, (1, 1)), (3, 5, (1, 1)), (4, 4, (1, 1)), (4, 4, (2, 2)), (4, 4, (4, 4)), (4, 9, (2, 3))])
@pytest.mark.parametrize('norm', ['channel', None])
def test_a_neck_sees_no_difference(norm, height, width, grid, tmp_path):
    maps = torch.randn(6, 8, height, width, generator=torch.Generator().manual_seed(0)) * 3 + 1
    moments = write_features(tmp_path / 'train', maps, grid=grid)
    backbone = CachedFeatures(str(tmp_path))
    whole, ours = (AutoTimestepNeck(8, output='vector', norm=norm, pool='grid', grid=grid) for _ in range(2))
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(backbone(moments)), whole.train(mode)((maps,)), rtol=1e-4, atol=1e-5)
    for own, theirs in zip(ours.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(own, theirs)


def test_splits_of_different_choices_are_refused(tmp_path):
    for split, timestep in (('train', 40), ('val', 41)):
        write_features(tmp_path / split, torch.randn(2, 3, 2, 2), timestep)
    with pytest.raises(ValueError, match='the splits train, val in .* different models, timesteps or taps'):
        CachedFeatures(str(tmp_path))


def test_features_of_different_sizes_are_refused(tmp_path):
    number = identity(dict(img_path='a/b.png'))
    write(tmp_path, 2, dict(kind='features'),
          lambda places: [dict(about=torch.tensor([number, 16 + place]), moments=torch.zeros(4, 2)) for place in places])
    load = LoadFeatures(str(tmp_path))
    assert load(dict(img_path='a/b.png', sample_idx=0))['img'].shape == (2, 1, 4)
    with pytest.raises(ValueError, match='features of 16 and of 17 cells'):
        load(dict(img_path='a/b.png', sample_idx=1))


@pytest.mark.parametrize('changes, reason', [
    ({'model__neck__pool': 'grid', 'model__neck__grid': 3}, 'do not part into a grid of 3x3'),
    ({'model__neck__norm': 'layer'}, "norm='channel' or None"), ({'model__neck__pool': 'attention'}, "pool='mean'"),
    ({'model__backbone__noise': 'random'}, 'the same in every epoch'), ({'model__backbone__frozen': False}, 'frozen=True')])
def test_what_features_cannot_stand_for_is_refused(changes, reason, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool(FEATURES, CLS, data, '--out', tmp_path / 'cache', '--work-dir', tmp_path, model__backbone__timestep=40, **changes)
    assert reason in capsys.readouterr().err
