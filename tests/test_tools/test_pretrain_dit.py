"""Pretraining a small DiT: what it writes loads, and a killed one goes on as if nothing had happened."""
import json
import sys

import numpy as np
import pytest
import runs
import tiny
from PIL import Image

from mmaselect.extract import Extractor

PRETRAIN = runs.ROOT / 'tools' / 'pretrain_dit.py'
DIES = '''
import os, runpy, signal, sys
import torch.nn.functional as F
last, calls, inner = int(sys.argv[1]), [], F.mse_loss
def mse_loss(*args):
    calls.append(1)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*args)
F.mse_loss = mse_loss
sys.argv[:] = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''
PRETRAINING = ('--size', 16, '--vae-steps', 2, '--vae-batch', 2, '--dit-steps', 103, '--dit-batch', 2, '--save-minutes', 0)


def pretrain_words(name, data, folder, *options):
    images = data / 'fashion_scenes' / 'img_dir' / 'train', data / 'fashion_mnist' / 'train-images-idx3-ubyte'
    return [PRETRAIN, folder / name, *images, '--work-dir', folder / f'{name}_work', *PRETRAINING, *options]


@pytest.fixture(scope='module')
def pretrained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pretrained')
    # In a process of its own, as all that is compared to the last bit: what ran in this one before could change the rounding.
    runs.run(sys.executable, *pretrain_words('whole', data, folder))
    return folder / 'whole'


def test_pretraining_writes_a_pipeline_that_loads(pretrained):
    extractor = Extractor.from_pretrained(pretrained)
    feature, = extractor(tiny.images(2, 16, 24), 100)
    assert feature.shape == (2, 128, 2, 3) and feature.isfinite().all()
    assert json.loads((pretrained / 'scheduler' / 'scheduler_config.json').read_text())['num_train_timesteps'] == 1000
    for name in ('samples.png', 'loss.png'):
        assert np.asarray(Image.open(pretrained / name)).std() > 0


def test_an_interrupted_pretraining_ends_as_an_uninterrupted_one(pretrained, data, tmp_path):
    # Killed in its 102nd step, after the checkpoint of the 100th.
    runs.run(sys.executable, '-c', DIES, 102, *pretrain_words('killed', data, tmp_path), code=-9)
    out = tmp_path / 'killed'
    assert not out.exists()
    printed = runs.run(sys.executable, *pretrain_words('killed', data, tmp_path))
    assert 'dit: goes on from step 100' in printed and 'vae: goes on from step 2' in printed
    for name in ('transformer/diffusion_pytorch_model.safetensors', 'vae/diffusion_pytorch_model.safetensors', 'vae/config.json',
                 'scheduler/scheduler_config.json', 'samples.png'):
        assert (out / name).read_bytes() == (pretrained / name).read_bytes(), name


def test_pretraining_takes_a_trained_vae(pretrained, data, tmp_path):
    printed = runs.run_here(*pretrain_words('other', data, tmp_path, '--vae', pretrained, '--dit-steps', 1, '--seed', 1))
    assert 'vae' not in printed
    vaes = [(folder / 'vae' / 'diffusion_pytorch_model.safetensors').read_bytes() for folder in (pretrained, tmp_path / 'other')]
    assert vaes[0] == vaes[1]


def test_pretraining_on_pixels_with_flow_matching(data, tmp_path):
    printed = runs.run_here(*pretrain_words('flow', data, tmp_path, '--pixels', '--flow', '--bf16', '--dit-steps', 100))
    assert 'vae' not in printed and not (tmp_path / 'flow' / 'vae').exists()
    extractor = Extractor.from_pretrained(tmp_path / 'flow')
    assert extractor.token_stride == 4 and extractor.process.signal[-1] == 0  # flow matching ends in pure noise
    feature, = extractor(tiny.images(2, 16, 24), 100)
    assert feature.shape == (2, 128, 4, 6) and feature.isfinite().all()


def test_a_source_that_is_no_images_is_named(tmp_path):
    (tmp_path / 'notes.txt').write_text('not an idx file')
    printed = runs.run(sys.executable, PRETRAIN, tmp_path / 'out', tmp_path / 'notes.txt', '--work-dir', tmp_path, code=1)
    assert 'notes.txt is neither a folder nor an idx file of images' in printed

