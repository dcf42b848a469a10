"""What draws: our tools, and the toolboxes' own tools on our configs."""
import base64
import importlib.metadata
import io
import json
import re
from types import SimpleNamespace

import matplotlib
import mmengine
import numpy as np
import pytest
import runs
import tiny
import torch
from diffusers import AutoencoderKL
from marks import quick
from mmengine.config import Config, ConfigDict
from mmseg.apis import inference_model, init_model
from PIL import Image

from mmaselect.openmm import vis
from mmaselect.selection import SelectionResult

TOOLS = runs.ROOT / 'tools' / 'visualization'
SEG, CLS = 'aselect_fashion_scenes', 'aselect_cub'
FOLDED = ['--cfg-options', 'model.backbone.timestep=40', 'model.backbone.fold=True']


def trained(name, data, folder):
    """A short run as a user would have it: its work dir, its config as a file, its last checkpoint and an image of its data."""
    runs.run_here(runs.ROOT / 'tools' / 'train.py', runs.CONFIGS[name], '--work-dir', folder,
                  *runs.words({**runs.options(name, data), 'model.backbone.fold': False}))
    images = data / name.partition('_')[2] / ('img_dir/val' if name == SEG else 'images')
    return SimpleNamespace(folder=folder, config=folder / f'dit_{name}.py', image=sorted(images.rglob('*.??g'))[0],
                           checkpoint=folder / ('iter_2.pth' if name == SEG else 'epoch_1.pth'))


@pytest.fixture(scope='module')
def segmentor(data, tmp_path_factory):
    return trained(SEG, data, tmp_path_factory.mktemp('segmentor'))


@pytest.fixture(scope='module')
def classifier(data, tmp_path_factory):
    return trained(CLS, data, tmp_path_factory.mktemp('classifier'))


def pixels(path):
    return np.asarray(Image.open(path).convert('RGB')).astype(int)


# Ours


def test_features(segmentor, tmp_path):
    for name in ('one', 'two'):
        printed = runs.run_here(TOOLS / 'vis_features.py', segmentor.config, segmentor.checkpoint, '--images', 2, '--timesteps',
                                5, 600, '--blocks', 0, -1, '--tap', 'key', '--out', tmp_path / f'{name}.png')
    assert printed.split()[-2:] == [str(tmp_path / f'two_{k}.png') for k in (0, 1)]
    first, second, again = (pixels(tmp_path / name) for name in ('one_0.png', 'one_1.png', 'two_0.png'))
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_features_of_a_file(classifier, tmp_path):
    """Without a checkpoint, and with the blocks, timesteps and place that the tool chooses."""
    printed = runs.run_here(TOOLS / 'vis_features.py', classifier.config, '--image', classifier.image, '--work-dir', tmp_path)
    assert printed.split()[-1] == str(tmp_path / 'vis_features.png')
    height, width, _ = pixels(tmp_path / 'vis_features.png').shape
    assert width > 4 * height  # an image and six timesteps, one block


def test_a_file_goes_through_the_pipeline_of_a_wrapped_set(classifier, data, tmp_path):
    runner = runs.runner(CLS, data, tmp_path)
    expected, loader = vis.one_image(runner.cfg, runner.model, classifier.image), runner.cfg.test_dataloader
    loader.dataset = ConfigDict(type='RepeatDataset', times=2, dataset=loader.dataset)
    assert torch.equal(vis.one_image(runner.cfg, runner.model, classifier.image), expected)


def test_features_of_a_folded_dit(segmentor, tmp_path):
    """At its own timestep alone, where its weights are not to be had again."""
    runs.run_here(TOOLS / 'vis_features.py', segmentor.config, '--images', 1, '--timesteps', 40, '--out', tmp_path / 'one.png',
                  *FOLDED)
    assert pixels(tmp_path / 'one.png').std() > 0


def test_timesteps(segmentor):
    """By default the candidates of the work dir's selection, a row each, the chosen one in red."""
    runs.run_here(TOOLS / 'vis_timesteps.py', segmentor.config, segmentor.checkpoint, '--images', 1, '--blocks', 1,
                  '--work-dir', segmentor.folder)
    picture = pixels(segmentor.folder / 'vis_timesteps.png')
    left = picture[:, :int(1.8 * 150)]  # the labels
    red = (left[..., 0] - left[..., 1] > 100).any(1).nonzero()[0]
    ink = (left.min(2) < 128).any(1).nonzero()[0]
    selection = SelectionResult.load(segmentor.folder / 'timestep_selection.json')
    rows, place = len(selection.candidates), selection.candidates.index(selection.chosen)
    top, bottom = ink[ink > 0.6 * 150].min(), ink.max()  # below the title
    share = (red.mean() - top) / (bottom - top)
    assert place / rows < share < (place + 1) / rows


@pytest.mark.parametrize(('options', 'message'), [
    (['--blocks', '9'], 'block 9 is out of range'), (['--timesteps', '1000'], r'timesteps are integers in \[0, 999\]'),
    (['--image', 'nothing.png'], 'there is no image nothing.png'), (['--images', '0'], 'show at least one'),
    (['nothing.pth'], 'nothing.pth'), ([*FOLDED, '--timesteps', '40', '50'], 'folded at its timestep and cannot run at another')])
def test_what_cannot_be_drawn_is_refused(segmentor, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        runs.run_here(TOOLS / 'vis_features.py', segmentor.config, *options)
    assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)


def decoder(backbone):
    cfg = Config(dict(model=dict(backbone=dict(type='mmaselect.DiTBackbone', **backbone))))
    built = vis.MODELS.build(cfg.model.backbone)
    return vis.vae_decoder(cfg, built), built.extractor.encoder


def test_a_pretrained_vae_decodes_its_latents():
    folder = runs.ROOT / 'configs' / 'fashion_dit'
    decode, encoder = decoder(dict(pretrained=str(folder)))
    image = tiny.images(1, 16, 24)
    with torch.no_grad():
        expected = AutoencoderKL.from_pretrained(folder / 'vae')(image, sample_posterior=False).sample[0]
    torch.testing.assert_close(decode(encoder(image)), expected)


def test_a_random_vae_shows_channels_of_the_latent():
    with pytest.warns(UserWarning, match='random weights: noisy latents are shown by their first three channels'):
        decode, encoder = decoder(dict(arch=tiny.ARCH))
    latent = encoder(tiny.images(1, 16, 24))
    torch.testing.assert_close(decode(latent), latent[0, :3] / 3)


def test_a_dit_on_pixels_shows_them():
    decode, encoder = decoder(dict(arch=tiny.PIXEL_ARCH))
    image = tiny.images(1, 16, 24)
    torch.testing.assert_close(decode(encoder(image)), image[0])


def test_report(segmentor):
    printed = runs.run_here(TOOLS / 'report.py', segmentor.folder, '--draw-features', 2, '--pictures', 2)
    page = (segmentor.folder / 'report.html').read_text()
    assert printed.strip().endswith(f'written: {segmentor.folder}/report.html')
    chosen = SelectionResult.load(segmentor.folder / 'timestep_selection.json').timestep
    assert f'<b>t = {chosen}</b>' in page and 'mIoU' in page and 'Trained for 2 iterations' in page and 'PyTorch' in page
    pictures = [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in re.findall(r'data:image/png;base64,([\w+/=]+)', page)]
    predictions = 2 if tiny.OLD_TORCH else 1  # the hook of stock mmseg draws all, of which two are asked for
    assert len(pictures) == predictions + 2 + 1  # predictions, features, timesteps
    assert all(np.asarray(picture.convert('L')).std() > 1 for picture in pictures)


def test_report_of_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        runs.run_here(TOOLS / 'report.py', tmp_path)
    assert 'holds no run' in capsys.readouterr().err and not list(tmp_path.iterdir())


# The toolboxes'


def tool_of(toolbox, name):
    return runs.Path(importlib.util.find_spec(toolbox).origin).parent / '.mim' / 'tools' / name


def changed(run, path, text):
    """A config of a user that inherits the run's and says a little more."""
    path.write_text(f"_base_ = ['{run.config}']\n{text}\n")
    return path


@pytest.mark.skipif(tiny.OLD_TORCH, reason='mmseg 1.2.2 draws into an array that OpenCV does not take')
def test_mmseg_browse_dataset(segmentor, tmp_path):
    runs.run_here(tool_of('mmseg', 'analysis_tools/browse_dataset.py'), segmentor.config, '--output-dir', tmp_path, '--not-show')
    assert len(list(tmp_path.iterdir())) == runs.TRAIN and pixels(next(tmp_path.iterdir())).std() > 1


def test_mmpretrain_browse_dataset(classifier, tmp_path):
    """Its other modes draw with a part of matplotlib that 3.11 changed."""
    runs.run_here(tool_of('mmpretrain', 'visualization/browse_dataset.py'), classifier.config, '--output-dir', tmp_path,
                  '--not-show', '--show-number', 2, '--mode', 'original')
    assert len(list(tmp_path.iterdir())) == 2 and pixels(next(tmp_path.iterdir())).std() > 1


def flops(printed):
    amount, unit = re.search(r'Flops: ([\d.]+)([KMG])', printed).groups()
    return float(amount) * dict(K=1e3, M=1e6, G=1e9)[unit]


@pytest.mark.skipif(tiny.OLD_TORCH, reason='mmseg 1.2.2 gives MMEngine 0.10.7 both of two arguments of which it takes one')
def test_mmseg_get_flops(segmentor):
    """FLOPs do not depend on the timestep, and grow with the image."""
    small, large = (flops(runs.run_here(tool_of('mmseg', 'analysis_tools/get_flops.py'), segmentor.config, '--shape', 32, width,
                                        '--cfg-options', 'model.backbone.timestep=0')) for width in (32, 64))
    assert large == pytest.approx(2 * small, rel=0.1) and small > 1e5


@pytest.mark.skipif(tiny.OLD_TORCH, reason='torch 2.1 cannot trace a random generator; tools/analysis_tools/cost.py counts')
def test_mmpretrain_get_flops(classifier, tmp_path):
    """It takes no --cfg-options, so the timestep, which FLOPs do not depend on, is fixed by a config of two lines."""
    config = changed(classifier, tmp_path / 'fixed.py', 'model = dict(backbone=dict(timestep=0))')
    printed = runs.run_here(tool_of('mmpretrain', 'analysis_tools/get_flops.py'), config, '--shape', 32, 48)
    assert flops(printed) > 1e5


@pytest.mark.parametrize('file', quick(['scalars.json', '{}.json'], ['scalars.json']))
def test_mmseg_analyze_logs(segmentor, file, tmp_path):
    pytest.importorskip('seaborn')
    for key in ('mIoU', 'loss'):
        session, = segmentor.folder.glob('*/vis_data')
        runs.run_here(tool_of('mmseg', 'analysis_tools/analyze_logs.py'), session / file.format(session.parent.name), '--keys',
                      key, '--out', tmp_path / f'{key}.png')
        assert pixels(tmp_path / f'{key}.png').std() > 1


@pytest.mark.parametrize('file', quick(['scalars.json', '{}.json'], ['scalars.json']))
def test_mmpretrain_analyze_logs(classifier, file, tmp_path):
    session, = classifier.folder.glob('*/vis_data')
    tool, log = tool_of('mmpretrain', 'analysis_tools/analyze_logs.py'), session / file.format(session.parent.name)
    runs.run_here(tool, 'plot_curve', log, '--keys', 'accuracy/top1', 'loss', '--out', tmp_path / 'curve.png')
    assert pixels(tmp_path / 'curve.png').std() > 1
    assert 'average iter time' in runs.run_here(tool, 'cal_train_time', log)


def test_mmseg_confusion_matrix(segmentor, data, tmp_path):
    runs.run_here(runs.ROOT / 'tools' / 'test.py', segmentor.config, segmentor.checkpoint, '--work-dir', tmp_path / 'run',
                  '--out', tmp_path / 'masks')
    with matplotlib.rc_context({'savefig.dpi': 30}):  # 300 take seconds
        runs.run_here(tool_of('mmseg', 'analysis_tools/confusion_matrix.py'), segmentor.config, tmp_path / 'masks',
                      tmp_path / 'matrix')
    assert pixels(tmp_path / 'matrix' / 'confusion_matrix.png').std() > 1


def test_mmpretrain_confusion_matrix(classifier, tmp_path):
    runs.run_here(tool_of('mmpretrain', 'analysis_tools/confusion_matrix.py'), classifier.config, classifier.checkpoint,
                  '--out', tmp_path / 'matrix.pkl', '--show-path', tmp_path / 'matrix.png')
    matrix = mmengine.load(tmp_path / 'matrix.pkl')
    assert matrix.sum() == 4 and pixels(tmp_path / 'matrix.png').std() > 1  # write_cub has an image per class for testing


@pytest.mark.slow
def test_mmseg_benchmark(segmentor, tmp_path):
    """It takes 200 images, more than the tiny set has, and its time is not looked at."""
    dataset = Config.fromfile(segmentor.config).test_dataloader.dataset.to_dict()
    config = changed(segmentor, tmp_path / 'repeated.py',
                     f"test_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=67, dataset={dataset}))")
    runs.run_here(tool_of('mmseg', 'analysis_tools/benchmark.py'), config, segmentor.checkpoint, '--work-dir', tmp_path)
    result, = tmp_path.glob('fps_*.json')
    assert json.loads(result.read_text())['average_fps'] > 0


def test_mmpretrain_vis_cam(classifier, tmp_path):
    """The maps that the neck gets are (B, D, h, w) already: its norm is the layer to look at."""
    pytest.importorskip('pytorch_grad_cam')
    for category in (0, 1):
        runs.run_here(tool_of('mmpretrain', 'visualization/vis_cam.py'), classifier.image, classifier.config,
                      classifier.checkpoint, '--target-layers', 'neck.norms.0', '--target-category', category, '--save-path',
                      tmp_path / f'{category}.png')
    first, second = (pixels(tmp_path / f'{category}.png') for category in (0, 1))
    assert first.shape == second.shape == (32, 32, 3) and abs(first - second).mean() > 1  # another class, another heat


@pytest.mark.slow
def test_mmseg_vis_cam(segmentor, tmp_path):
    pytest.importorskip('pytorch_grad_cam')
    if int(importlib.metadata.version('grad-cam').split('.')[1]) >= 5:
        pytest.skip("mmseg's visualization_cam passes use_cuda, which grad-cam 1.5 no longer takes")
    model = init_model(str(segmentor.config), str(segmentor.checkpoint), device='cpu')
    predicted = int(inference_model(model, str(segmentor.image)).pred_sem_seg.data.mode().values[0, 0])
    cams = []
    for tap in range(4):  # a hardly trained head may see nothing for the class in one of them
        runs.run_here(tool_of('mmseg', 'analysis_tools/visualization_cam.py'), segmentor.image, segmentor.config,
                      segmentor.checkpoint, '--target-layers', f'neck.norms[{tap}]', '--category-index', predicted, '--device',
                      'cpu', '--out-file', tmp_path / 'predicted.png', '--cam-file', tmp_path / 'cam.png')
        cams.append(pixels(tmp_path / 'cam.png'))
    assert all(cam.shape == cams[0].shape == pixels(segmentor.image).shape for cam in cams)
    assert max(abs(cam - cams[0]).mean() for cam in cams) > 1
