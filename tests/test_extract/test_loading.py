import json
import shutil

import pytest
import tiny
from diffusers import DDIMScheduler, DiTPipeline

from mmaselect.extract import FeatureExtractor, loading


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('dit')
    extractor = tiny.extractor()
    DiTPipeline(extractor.family.model, extractor.encoder.vae, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / 'dit')
    return tmp_path / 'dit'


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize('part', ['transformer', 'scheduler', 'vae'])
def test_a_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=f'(lacks|has no) {part}/'):
        loading.from_pretrained(folder)


def test_missing_weights_are_named(folder):
    (folder / 'transformer' / 'diffusion_pytorch_model.safetensors').unlink()
    with pytest.raises(ValueError, match='transformer cannot be loaded'):
        loading.from_pretrained(folder)


def test_truncated_weights_are_named(folder):
    path = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match='vae cannot be loaded as AutoencoderKL'):
        loading.from_pretrained(folder)


def test_other_shapes_are_named(folder):
    edit(folder / 'transformer' / 'config.json', attention_head_dim=16)
    with pytest.raises(ValueError, match='transformer'):
        loading.from_pretrained(folder)


@pytest.mark.parametrize('layers', [3, 5])
def test_missing_and_unexpected_keys_are_named(folder, layers):
    edit(folder / 'transformer' / 'config.json', num_layers=layers)
    with pytest.raises(ValueError, match='transformer_blocks'):
        loading.from_pretrained(folder)


def test_an_unknown_transformer_is_named(folder):
    edit(folder / 'transformer' / 'config.json', _class_name='UNet2DModel')
    with pytest.raises(ValueError, match='is a UNet2DModel: the known transformers are DiTTransformer2DModel'):
        loading.from_pretrained(folder)


def test_a_broken_config_is_named(folder):
    (folder / 'scheduler' / 'scheduler_config.json').write_text('{"a":')
    with pytest.raises(ValueError, match='scheduler_config.json is not a diffusers config'):
        loading.from_pretrained(folder)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(FileNotFoundError, match='is a file, not a folder in DiTPipeline layout'):
        loading.from_pretrained(folder / 'model_index.json')


def test_a_hub_id_without_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr(loading, 'snapshot_download', lambda *_, **__: (_ for _ in ()).throw(ConnectionError('no route')))
    with pytest.raises(FileNotFoundError, match='neither a folder nor a model.*no route.*give the path of its folder'):
        loading.from_pretrained('facebook/DiT-XL-2-512')


@pytest.mark.parametrize('arch, message', [
    ({}, 'arch takes transformer'),
    (dict(transformer=tiny.DIT, unet={}), 'arch takes transformer'),
    (dict(transformer=dict(tiny.DIT, type='UNet2DModel')), "'UNet2DModel' is not supported"),
    (dict(transformer=dict(tiny.DIT, in_channels=3), scheduler=dict(type='Nothing')), "'Nothing' is not a scheduler"),
])
def test_a_bad_arch_is_refused(arch, message):
    with pytest.raises(ValueError, match=message):
        loading.from_arch(arch)


def test_an_arch_is_not_changed():
    arch = dict(transformer=dict(tiny.DIT, type='DiTTransformer2DModel'), vae=dict(tiny.VAE),
                scheduler=dict(num_train_timesteps=10))
    before = json.dumps(arch)
    assert len(FeatureExtractor.from_arch(arch).process) == 10
    assert json.dumps(arch) == before


def test_an_arch_takes_a_pretrained_vae(saved):
    parts = loading.from_arch(dict(transformer=tiny.DIT, vae=str(saved)))
    assert parts.vae.config.scaling_factor == 0.5
