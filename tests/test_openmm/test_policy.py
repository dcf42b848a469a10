"""What the neck's policy asks of the sweep: the tap, the labels, how many images; and what of it is kept."""
import numpy as np
import pytest
import runs
import tiny
import torch
from PIL import Image
from planted import swept

from mmaselect.extract import TAPS
from mmaselect.openmm import AutoTimestepHook, sweep_images
from mmaselect.openmm import hook as module
from mmaselect.registry import MODELS
from mmaselect.selection import SelectionPolicy, SelectionResult, TensorImages, sweep

SEG, CLS, ADE = 'aselect_fashion_scenes', 'aselect_cub', 'aselect_ade20k'
CHOICES = [[0, 'query'], [2, 'mlp']]  # none is the tap of the config
AUTO = {'model.backbone.taps': [(3, 'hidden')], 'model.neck.num_taps': 1, 'model.neck.selection.choose_tap': True,
        'model.neck.selection.score_taps': CHOICES}


def read(folder):
    return SelectionResult.load(folder / 'timestep_selection.json')


# Timestep and tap


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """A segmentor that chose its tap, after two iterations and a validation."""
    folder = tmp_path_factory.mktemp('auto')
    runner = runs.runner(SEG, data, folder, AUTO)
    runner.train()
    return runner, read(folder), folder / 'iter_2.pth'


def test_the_tap_is_chosen_used_and_stored(trained):
    runner, result, checkpoint = trained
    assert list(map(list, result.taps)) == CHOICES
    place = result.taps.index(result.tap)
    highest = [max(c.tap_scores[k] for c in result.candidates) for k in range(len(result.taps))]
    assert highest.index(max(highest)) == place and all(c.score == c.tap_scores[place] for c in result.candidates)
    assert runner.model.backbone.extractor.taps == (result.tap,)
    state = torch.load(checkpoint, map_location='cpu', weights_only=False)['state_dict']
    assert state['backbone.tap'].tolist() == [result.tap[0], list(TAPS).index(result.tap[1])]
    assert int(state['backbone.timestep']) == result.timestep


def test_testing_a_checkpoint_restores_its_tap(trained, data, tmp_path):
    before, result, checkpoint = trained
    runner = runs.runner(SEG, data, tmp_path, {**AUTO, 'load_from': str(checkpoint)})
    assert runner.model.backbone.extractor.taps == ((3, 'hidden'),)
    metrics = runner.test()
    assert runner.model.backbone.extractor.taps == (result.tap,)
    assert runner.model.backbone.chosen == result.timestep
    assert metrics['mIoU'] == pytest.approx(before.message_hub.log_scalars['val/mIoU'].current())
    assert not (tmp_path / 'timestep_selection.json').exists()


def test_an_averaged_model_restores_its_tap(data, tmp_path):
    """EMAHook copies the model before the sweep."""
    def with_average(folder, **changes):
        cfg = runs.config(CLS, data, folder, {**AUTO, **changes})
        cfg.custom_hooks.append(dict(type='EMAHook'))
        return runs.Runner.from_cfg(cfg)

    with_average(tmp_path).train()
    runner = with_average(tmp_path / 'test', load_from=str(tmp_path / 'epoch_1.pth'))
    runner.test()
    assert runner.model.backbone.extractor.taps == (read(tmp_path).tap,)


@pytest.mark.parametrize('frozen', [True, False])
def test_other_taps_choose_the_timestep_of_the_backbones_own(frozen, data, tmp_path):
    runner = runs.runner(CLS, data, tmp_path, {'model.neck.selection.score_taps': CHOICES, 'model.backbone.frozen': frozen})
    taps = runner.model.backbone.extractor.taps
    runner.train()
    result = read(tmp_path)
    assert list(map(list, result.taps)) == CHOICES and result.tap is None
    assert all(c.score == pytest.approx(sum(c.tap_scores) / 2) for c in result.candidates)
    assert runner.model.backbone.extractor.taps == taps and runner.model.backbone.chosen == result.timestep


def test_a_dit_that_is_trained_must_name_its_tap(data, tmp_path):
    runner = runs.runner(CLS, data, tmp_path, {**AUTO, 'model.backbone.frozen': False})
    with pytest.raises(ValueError, match="choose_tap=True needs frozen=True: choose the tap first, with tools/select_timestep"):
        runner.train()
    assert runner.model.backbone.extractor.taps == ((3, 'hidden'),) and runner.model.backbone.chosen is None


def test_the_upper_blocks_are_tried():
    extractor = tiny.extractor([(0, 'hidden')])  # of four blocks
    chosen_from = SelectionPolicy(choose_tap=True).taps_for(extractor)
    assert chosen_from == tuple((block, name) for block in (1, 2, 3) for name in TAPS)
    assert SelectionPolicy().taps_for(extractor) == ((1, 'value'), (2, 'value'), (3, 'value'))
    assert SelectionPolicy(score_taps=None).taps_for(extractor) == ((0, 'hidden'),)
    result = swept(extractor, TensorImages(tiny.images(3)), score_taps='auto', candidates=[5])
    assert result.taps == ((1, 'value'), (2, 'value'), (3, 'value')) and extractor.taps == ((0, 'hidden'),)


def test_taps_that_the_backbone_was_not_built_for_are_named(data, tmp_path):
    runner = runs.runner(CLS, data, tmp_path, {**AUTO, 'model.backbone.taps': [(1, 'hidden')]})
    with pytest.raises(ValueError, match=r"tries taps up to .*build less of the DiT: set backbone.taps=\[\(-1, 'hidden'\)\]"):
        runner.train()
    assert runner.model.backbone.chosen is None


def test_a_settled_timestep_leaves_no_tap_to_choose(data, tmp_path):
    runner = runs.runner(CLS, data, tmp_path, {**AUTO, 'model.backbone.timestep': 77})
    with pytest.raises(ValueError, match='the timestep is settled.*: leave it open, or name the tap'):
        runner.train()


def test_a_checkpoint_without_a_chosen_tap_gives_back_the_taps_of_the_config():
    config = dict(type='mmaselect.DiTBackbone', arch=runs.tiny.ARCH, taps=[(2, 'hidden')])
    backbone, other = MODELS.build(config), MODELS.build(dict(config, timestep=5))
    backbone.select(5, (2, 'query'))
    assert backbone.extractor.taps == ((2, 'query'),)
    backbone.load_state_dict(other.state_dict())
    assert backbone.extractor.taps == ((2, 'hidden'),)
    torch.testing.assert_close(backbone(runs.tiny.images()), other(runs.tiny.images()))


# Images, finer steps, controls


def test_the_policy_reaches_the_sweep(data, tmp_path):
    changes = {'model.neck.selection.num_images': 'auto', 'model.neck.selection.budget': 130,
               'model.neck.selection.controls': ['noise']}
    result = AutoTimestepHook().select(runs.runner(SEG, data, tmp_path, changes))
    assert result.num_images == runs.TRAIN  # all, as there are fewer than the first step takes
    # Three candidates of 6 images in 2 views each, as many for the control, and finer steps for what is left of the budget.
    assert list(result.controls) == ['noise'] and len(result.candidates) > 3
    assert 130 - 2 * 12 < result.forwards <= 130


@pytest.mark.parametrize('noise', ['seeded', 'none'])
def test_the_sweep_has_the_noise_of_the_backbone(noise, data, tmp_path, monkeypatch):
    asked = {}

    def recording(*args, **kwargs):
        asked.update(kwargs)
        return inner(*args, **kwargs)
    inner = module.sweep
    monkeypatch.setattr(module, 'sweep', recording)
    AutoTimestepHook().select(runs.runner(SEG, data, tmp_path, {'model.backbone.noise': noise, 'model.backbone.seed': 5}))
    assert (asked['noise'], asked['noise_seed']) == (noise, 5)


def test_the_log_has_every_remark(data, tmp_path, monkeypatch):
    monkeypatch.setattr(SelectionResult, 'remarks', ['one thing', 'and another'])
    result = AutoTimestepHook().select(runs.runner(CLS, data, tmp_path))
    log, = tmp_path.glob('*/*.log')
    assert result.summary() in log.read_text()
    assert all(f'WARNING - timestep selection: {remark}\n' in log.read_text() for remark in result.remarks)


# Labels


@pytest.mark.parametrize('name, score', [(SEG, 'probe'), (SEG, 'ridge'), (CLS, 'ridge')])
def test_a_probe_gets_the_labels(name, score, data, tmp_path):
    changes = {'model.neck.selection.score': score, 'model.neck.selection.num_images': 12, 'model.neck.selection.controls': []}
    runner = runs.runner(name, data, tmp_path, changes)
    whole, model = runner.model.backbone.unfolded(), runner.model
    result = AutoTimestepHook().select(runner)
    assert result.score['type'] == 'ridge' and read(tmp_path) == result
    source = sweep_images.training_sample(runner.cfg, model, model.neck.policy)
    images, labels = (torch.cat(parts) for parts in list(zip(*source.batches(0, 12), strict=True))[1:])
    alone = sweep(whole, TensorImages(images, labels), model.neck.policy)
    assert [c.score for c in result.candidates] == pytest.approx([c.score for c in alone.candidates], rel=1e-4)
    assert len({c.score for c in result.candidates}) == 3  # else this shows nothing


def test_few_images_of_many_classes_are_chosen_on_without_labels(data, tmp_path):
    runner = runs.runner(CLS, data, tmp_path, {'model.neck.selection.score': 'probe'})
    source = sweep_images.SweepImages(runner.cfg, runner.model, 6, None, seed=0)
    assert source.num_classes == len(source.dataset.CLASSES) > 1
    assert AutoTimestepHook().select(runner).score['type'] == 'half_consistency'


def labels(runner, kind, size=None):
    """Path -> label and image, of labels of this kind."""
    source = sweep_images.SweepImages(runner.cfg, runner.model, 6, size, seed=0)
    assert source.label_kind == kind and len(source) == 6
    return {source.dataset.get_data_info(index)['img_path']: (label, image)
            for indices, stack, own in source.batches(0, 6) for index, image, label in zip(indices, stack, own, strict=True)}


def test_labels_of_classes_are_those_of_the_images(data, tmp_path):
    found = labels(runs.images_of(CLS, data, tmp_path), 'image')
    assert len(found) == 6
    for path, (label, _) in found.items():
        assert f'{int(label) + 1:03d}.Bird' in path  # classes count from 0, folders from 1


@pytest.mark.parametrize('size', [None, (24, 20)])
def test_labels_of_pixels_are_those_of_the_images(size, data, tmp_path):
    """The masks are of the size of the files, and the pipeline of validation resizes the images; then they are cut."""
    resized = 0
    for path, (label, image) in labels(runs.images_of(ADE, data, tmp_path), 'pixel', size).items():
        assert label.shape == image.shape[1:]
        mask = np.asarray(Image.open(path.replace('images', 'annotations').replace('.jpg', '.png')))
        resized += mask.shape != label.shape
        # Quarters of one class each, and 0 in the file is no class.
        corners = torch.from_numpy(mask[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int) - 1)
        assert label[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == corners.where(corners >= 0, torch.tensor(255)).tolist()
    assert resized > 3  # else this shows nothing


def test_a_mask_is_sized_with_its_image():
    """Twice as high and three times as wide as its mask."""
    class Pixels(dict):
        gt_sem_seg = type('PixelData', (), dict(data=torch.tensor([[[3, 255], [0, 1]]])))

    label = sweep_images.label_of(Pixels(gt_sem_seg=None), torch.zeros(3, 4, 6))
    assert label.tolist() == [[3] * 3 + [255] * 3] * 2 + [[0] * 3 + [1] * 3] * 2
    assert sweep_images.label_of({}, torch.zeros(3, 4, 6)) is None


def test_a_set_of_several_labels_per_image_is_chosen_on_without_labels(data, tmp_path, monkeypatch):
    """Though the first image has one label: they may have any number."""
    runner = runs.runner(CLS, data, tmp_path, {'model.neck.selection.score': 'probe'})
    source = sweep_images.SweepImages(runner.cfg, runner.model, 6, None, seed=0)
    own = source.dataset.get_data_info
    monkeypatch.setattr(type(source.dataset), 'get_data_info',
                        lambda self, index: {**own(index), 'gt_label': [1, 2][:1 + index % 2]})
    assert source.label_kind is None and AutoTimestepHook().select(runner).score['type'] == 'half_consistency'


@pytest.mark.parametrize('labels, expected', [([2], 2), ([0, 2], None)])
def test_an_image_of_several_classes_has_no_one_label(labels, expected):
    from mmpretrain.structures import DataSample
    label = sweep_images.label_of(DataSample().set_gt_label(labels), torch.zeros(3, 4, 6))
    assert label == expected if expected is None else int(label) == expected and label.ndim == 0
