"""Pretraining a DiT: what it writes loads, a killed run goes on as if nothing had happened, and bad input costs nothing."""
import errno
import json
import re
import sys

import numpy as np
import pytest
import runs
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from mmaselect.extract import Extractor

PRETRAIN = runs.ROOT / 'tools' / 'pretrain_dit.py'
WEIGHTS = 'transformer/diffusion_pytorch_model.safetensors'
DIES = '''
import os, runpy, signal, sys
import torch.nn.functional as F
last, calls, inner = int(sys.argv[1]), [], F.mse_loss
def mse_loss(*args, **options):
    calls.append(1)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*args, **options)
F.mse_loss = mse_loss
sys.argv[:] = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name='__main__')
'''
PRETRAINING = ('--size', 16, '--vae-steps', 2, '--vae-batch', 2, '--dit-steps', 103, '--dit-batch', 2, '--save-minutes', 0)
SMALL = ('--pixels', '--depth', 2, '--width', 16, '--heads', 2, '--size', 16, '--dit-batch', 2, '--save-minutes', 0)
MASKED = (*SMALL, '--dit-steps', 60, '--mask', 0.5, '--flip', '--prediction', 'sample')


@pytest.fixture(autouse=True, scope='module')
def tools():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PRETRAIN.parent))
        yield


def pretrain_words(name, data, folder, *options):
    images = data / 'fashion_scenes' / 'img_dir' / 'train', data / 'fashion_mnist' / 'train-images-idx3-ubyte'
    return [PRETRAIN, folder / name, *images, '--work-dir', folder / f'{name}_work', *PRETRAINING, *options]


def small_words(name, data, folder, *options):
    images = data / 'fashion_scenes' / 'img_dir' / 'train'
    return [PRETRAIN, folder / name, images, '--work-dir', folder / f'{name}_work', *options]


def refused(*words):
    """The message with which the tool stops."""
    with pytest.raises(SystemExit) as stopped:
        runs.run_here(*words)
    return str(stopped.value)


@pytest.fixture(scope='module')
def pretrained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrained')
    runs.run_here(*pretrain_words('whole', data, folder, '--dit-steps', 3))
    return folder / 'whole'


@pytest.fixture
def classes(tmp_path):
    """Dark images of one class and bright ones of another."""
    rng = np.random.default_rng(0)
    for name, low in (('bright', 128), ('dark', 0)):
        (tmp_path / 'classes' / name).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(low, low + 128, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'classes' / name / f'{index}.png')
    return tmp_path / 'classes'


def test_pretraining_writes_a_pipeline_that_loads(pretrained):
    extractor = Extractor.from_pretrained(pretrained)
    feature, = extractor(tiny.images(2, 16, 24), 100)
    assert feature.shape == (2, 128, 2, 3) and feature.isfinite().all()
    assert json.loads((pretrained / 'scheduler' / 'scheduler_config.json').read_text())['num_train_timesteps'] == 1000
    for name in ('samples.png', 'loss.png'):
        assert np.asarray(Image.open(pretrained / name)).std() > 0


@pytest.mark.slow
def test_an_interrupted_pretraining_ends_as_an_uninterrupted_one(data, tmp_path):
    """All in processes of their own: what ran in this one before could change the rounding."""
    runs.run(sys.executable, *pretrain_words('whole', data, tmp_path))
    pretrained = tmp_path / 'whole'
    # Killed in its 102nd step, after the checkpoint of the 100th.
    runs.run(sys.executable, '-c', DIES, 102, *pretrain_words('killed', data, tmp_path), code=-9)
    out = tmp_path / 'killed'
    assert not out.exists()
    printed = runs.run(sys.executable, *pretrain_words('killed', data, tmp_path))
    assert 'dit: goes on from step 100' in printed and 'vae: goes on from step 2' in printed
    for name in (WEIGHTS, 'vae/diffusion_pytorch_model.safetensors', 'vae/config.json', 'scheduler/scheduler_config.json',
                 'samples.png'):
        assert (out / name).read_bytes() == (pretrained / name).read_bytes(), name


def test_pretraining_takes_a_trained_vae(pretrained, data, tmp_path):
    printed = runs.run_here(*pretrain_words('other', data, tmp_path, '--vae', pretrained, '--dit-steps', 1, '--seed', 1))
    assert 'vae' not in printed
    vaes = [(folder / 'vae' / 'diffusion_pytorch_model.safetensors').read_bytes() for folder in (pretrained, tmp_path / 'other')]
    assert vaes[0] == vaes[1]


def test_pretraining_on_pixels_with_flow_matching(data, tmp_path):
    printed = runs.run_here(*pretrain_words('flow', data, tmp_path, '--pixels', '--prediction', 'flow', '--bf16', '--depth', 2,
                                            '--dit-steps', 3))
    assert 'vae' not in printed and not (tmp_path / 'flow' / 'vae').exists()
    extractor = Extractor.from_pretrained(tmp_path / 'flow')
    assert extractor.token_stride == 4 and extractor.process.signal[-1] == 0  # flow matching ends in pure noise
    feature, = extractor(tiny.images(2, 16, 24), 100)
    assert feature.shape == (2, 128, 4, 6) and feature.isfinite().all()


def test_the_weights_that_the_probe_likes_best_are_kept(data, classes, tmp_path):
    words = small_words('probed', data, tmp_path, *MASKED, '--min-snr', 5, '--time-mean', -1, '--probe', classes,
                        '--probe-every', 50, '--probe-timesteps', 0, 100)
    printed = runs.run_here(*words)
    state = torch.load(tmp_path / 'probed_work' / 'dit.pth', weights_only=True)
    assert [step for step, _ in state['curve']['probes']] == [50, 60]
    found = {step: max(accuracy for _, _, accuracy in rows) for step, rows in state['curve']['probes']}
    assert state['best']['accuracy'] == max(found.values()) == found[state['best']['step']]
    assert {t for t, _, _ in state['curve']['probes'][0][1]} == {0, 100}
    assert f'keeps step {state["best"]["step"]}' in printed
    written = load_file(tmp_path / 'probed' / WEIGHTS)
    for name, value in written.items():
        torch.testing.assert_close(value, state['best']['ema'][f'dit.{name}'], rtol=0, atol=0)
    config = json.loads((tmp_path / 'probed' / 'scheduler' / 'scheduler_config.json').read_text())
    assert config['prediction_type'] == 'sample'


def test_two_views_of_each_image_are_contrasted(data, tmp_path):
    losses = {}
    for weight in (0, 0.5):
        words = small_words(f'contrast_{weight}', data, tmp_path, *MASKED, '--contrast', weight, '--dit-batch', 4)
        runs.run_here(*words)
        rows = (tmp_path / f'contrast_{weight}_work' / 'dit_losses.csv').read_text().splitlines()
        losses[weight] = float(rows[-1].split(',')[1])
        assert not any('projection' in key for key in load_file(tmp_path / f'contrast_{weight}' / WEIGHTS))
    # By chance InfoNCE is log(7) with the four images' eight views.
    assert losses[0] + 0.1 < losses[0.5] < losses[0] + 0.5 * 2.5
    said = refused(*small_words('latents', data, tmp_path, '--contrast', 0.5))
    assert said == '2'


def test_views_are_crops_of_their_own_colours(data):
    import pretrain_data
    images = pretrain_data.to_tensor(pretrain_data.read_images([data / 'fashion_scenes' / 'img_dir' / 'train'], 32))
    first, again, other = (pretrain_data.view(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and first.shape == images.shape and first.abs().max() <= 1
    assert (first - other).abs().mean((1, 2, 3)).min() > 0.01 and (first - images).abs().mean((1, 2, 3)).max() > 0.05
    constant = pretrain_data.view(torch.full((64, 3, 8, 8), 0.5), torch.Generator().manual_seed(0))
    assert torch.allclose(constant.amax((2, 3)), constant.amin((2, 3)), atol=1e-5)  # a crop adds no edges
    assert constant[:, :, 0, 0].std() > 0.05


def test_every_image_is_seen_once_an_epoch(monkeypatch):
    import pretrain_data
    seen = torch.cat([pretrain_data.batch_indices(3, step, 4, 10) for step in range(5)])
    assert len(seen) == 20 and all(sorted(seen[start:start + 10].tolist()) == list(range(10)) for start in (0, 10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(pretrain_data.batch_indices(3, 0, 20, 10), seen)


def test_pretraining_goes_on_from_a_folder_of_weights(data, tmp_path):
    runs.run_here(*small_words('first', data, tmp_path, *SMALL, '--dit-steps', 2, '--prediction', 'sample'))
    runs.run_here(*small_words('second', data, tmp_path, '--init', tmp_path / 'first', '--pixels', '--size', 16, '--dit-steps', 1,
                               '--dit-batch', 2, '--lr', 0))
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ('first', 'second'))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    said = refused(*small_words('third', data, tmp_path, '--init', tmp_path / 'first', '--pixels', '--size', 16, '--patch', 2))
    assert 'does not fit: patch_size is 4 there and 2 here' in said
    del second['proj_out_2.bias']
    from safetensors.torch import save_file
    save_file(second, tmp_path / 'first' / WEIGHTS)
    said = refused(*small_words('fourth', data, tmp_path, '--init', tmp_path / 'first', '--pixels', '--size', 16))
    assert 'weights of transformer/ do not fit' in said and 'proj_out_2.bias' in said


def test_a_work_dir_of_another_run_is_refused(data, tmp_path):
    words = small_words('run', data, tmp_path, *SMALL, '--dit-steps', 2)
    runs.run_here(*words)
    kept = (tmp_path / 'run_work' / 'dit.pth').read_bytes()
    said = refused(*words, '--lr', 0.5)
    assert 'belongs to another run: lr was 0.001 and is 0.5' in said
    words[2] = data / 'fashion_mnist' / 'train-images-idx3-ubyte'
    said = refused(*words)
    assert 'belongs to another run' in said and 'images_sha256' in said
    assert (tmp_path / 'run_work' / 'dit.pth').read_bytes() == kept


class Killed(BaseException):
    """Ends a run wherever it is, as a signal does."""


def test_the_number_of_steps_may_change_before_the_learning_rate_falls(data, tmp_path, monkeypatch):
    def words(name, steps):
        return small_words(name, data, tmp_path, *SMALL, '--decay', 0.2, '--dit-steps', steps)
    inner, calls = torch.nn.functional.mse_loss, []

    def mse_loss(*args, **options):
        calls.append(1)
        if len(calls) == 52:
            raise Killed
        return inner(*args, **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(torch.nn.functional, 'mse_loss', mse_loss)
        runs.run_here(*words('longer', 100))
    assert 'goes on from step 50' in runs.run_here(*words('longer', 70))
    runs.run_here(*words('straight', 70))
    longer, straight = (load_file(tmp_path / name / WEIGHTS) for name in ('longer', 'straight'))
    for name, value in straight.items():
        torch.testing.assert_close(longer[name], value)
    assert 'the learning rate falls already' in refused(*words('longer', 80))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    inner, calls = torch.nn.functional.mse_loss, []

    def mse_loss(*args, **options):
        calls.append(1)
        return inner(*args, **options) * (float('nan') if len(calls) > 70 else 1)
    monkeypatch.setattr(torch.nn.functional, 'mse_loss', mse_loss)
    said = refused(*small_words('nan', data, tmp_path, *SMALL, '--dit-steps', 200))
    assert 'not finite between steps 50 and 100' in said and 'holds the last good state' in said
    state = torch.load(tmp_path / 'nan_work' / 'dit.pth', weights_only=True)
    assert state['step'] == 50 and all(value.isfinite().all() for value in state['model'].values())
    assert not (tmp_path / 'nan').exists()


def test_a_full_disk_leaves_the_former_checkpoint(data, tmp_path, monkeypatch):
    inner, calls = torch.save, []

    def save(state, path):
        calls.append(1)
        if len(calls) > 1:
            path.write_bytes(b'half')
            raise OSError(errno.ENOSPC, 'No space left on device')
        inner(state, path)
    monkeypatch.setattr(torch, 'save', save)
    said = refused(*small_words('full', data, tmp_path, *SMALL, '--dit-steps', 110))
    assert 'could not be written at step 100' in said and 'No space left' in said and 'the former one is whole' in said
    assert torch.load(tmp_path / 'full_work' / 'dit.pth', weights_only=True)['step'] == 50
    assert sorted(p.name for p in (tmp_path / 'full_work').iterdir()) == ['dit.pth', 'dit_losses.csv', 'dit_probes.csv',
                                                                          'settings.json']
    monkeypatch.undo()
    assert 'goes on from step 50' in runs.run_here(*small_words('full', data, tmp_path, *SMALL, '--dit-steps', 110))


def test_images_that_do_not_suit_are_named(data, classes, tmp_path):
    (tmp_path / 'notes.txt').write_text('not an idx file')
    (tmp_path / 'empty').mkdir()
    work = '--work-dir', tmp_path / 'work'
    said = refused(PRETRAIN, tmp_path / 'out', tmp_path / 'notes.txt', *work)
    assert 'notes.txt is neither a folder nor an idx file of images' in said
    assert 'empty has no PNG or JPEG files' in refused(PRETRAIN, tmp_path / 'out', tmp_path / 'empty', *work)
    crop = PRETRAIN, tmp_path / 'out', data / 'fashion_scenes' / 'img_dir' / 'train', '--pixels', '--crop', *work, '--size'
    assert 'every image has 32 x 32 pixels' in refused(*crop, 32)
    assert 'the smallest image has a side of 32' in refused(*crop, 64)
    assert 'two or more classes' in refused(*small_words('out', data, tmp_path, *SMALL, '--probe', classes / 'dark'))
    assert not (tmp_path / 'work').exists() and not (tmp_path / 'out').exists()


def test_crops_are_cut_where_images_are_larger(data, tmp_path):
    runs.run_here(*small_words('crops', data, tmp_path, *SMALL, '--crop', '--dit-steps', 1))
    assert json.loads((tmp_path / 'crops' / 'transformer' / 'config.json').read_text())['sample_size'] == 16


@pytest.mark.slow
def test_two_processes_train_as_one(data, tmp_path):
    torchrun = sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_port', runs.free_port()
    words = [*SMALL, '--dit-steps', 3, '--mask', 0.5, '--lr', 0.01, '--warmup', 1]
    runs.run(*torchrun, *small_words('two', data, tmp_path, *words))
    runs.run_here(*small_words('one', data, tmp_path, *words))
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ('one', 'two'))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    assert one['proj_out_2.weight'].abs().max() > 1e-3  # it did train


def test_images_of_16_bits_keep_their_range(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(runs.ROOT / 'tools')
    from pretrain_data import read_images
    Image.fromarray(np.full((8, 8), 257 * 40, np.uint16)).save(tmp_path / 'grey.png')
    image, = read_images([tmp_path], 8)
    assert image.shape == (8, 8, 3) and (image == 40).all()


def test_labelled_images_of_16_bits_keep_their_range(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(runs.ROOT / 'tools')
    from probe_dit import read_labelled
    for name, level in (('bright', 90), ('dark', 40)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 10), 257 * level, np.uint16)).save(tmp_path / name / 'grey.png')
    images, labels = read_labelled(tmp_path, 8)
    assert images.shape == (2, 8, 8, 3) and (images[0] == 90).all() and (images[1] == 40).all() and labels.tolist() == [0, 1]


@pytest.mark.parametrize('size', [0, -4])
def test_no_images_at_a_time_are_refused(size, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        runs.run_here(*small_words('none', data, tmp_path, '--pixels', '--dit-batch', size))
    assert f'--dit-batch {size} cannot be shared by the number of processes, 1' in capsys.readouterr().err
    assert not (tmp_path / 'none_work').exists()


def test_masked_tokens_need_a_block_that_puts_them_out(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        runs.run_here(*small_words('none', data, tmp_path, *MASKED, '--decoder-blocks', 0))
    assert '--decoder-blocks 0: with --mask' in capsys.readouterr().err and not (tmp_path / 'none_work').exists()


@pytest.mark.parametrize('words, said', [
    (('--size', 18), '--size 18 is not a multiple of a token, 4 pixels'), (('--warmup', 0), '--warmup 0: one step or more'),
    (('--probe-timesteps', 0, 1000), r'--probe-timesteps \[1000\]: there are 1000, from 0'),
    (('--contrast', 1, '--dit-batch', 1), '--contrast needs two images or more')])
def test_options_that_cannot_be_are_refused_before_the_work(words, said, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        runs.run_here(*small_words('one', data, tmp_path, *SMALL, *words))
    assert re.search(said, capsys.readouterr().err) and not (tmp_path / 'one').exists()


def test_sizes_are_those_of_what_it_goes_on_from(pretrained, data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        runs.run_here(*small_words('one', data, tmp_path, '--init', pretrained, '--depth', 2))
    assert '--depth is that of --init' in capsys.readouterr().err


def test_a_stage_without_steps_has_an_empty_curve(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(runs.ROOT / 'tools'))
    from pretrain_dit import plot_curves
    plot_curves({'DiT': dict(losses=[], probes=[], seconds=0)}, tmp_path / 'loss.png')
    assert (tmp_path / 'loss.png').is_file()
