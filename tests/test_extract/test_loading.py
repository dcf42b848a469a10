import json
import shutil

import pytest
import tiny
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

from mmaselect.extract import Extractor, loading


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


@pytest.mark.parametrize('part, name', [('vae', 'AutoencoderKL'), ('transformer', 'DiTTransformer2DModel')])
@pytest.mark.parametrize('damage', [lambda b: b[:4], lambda b: b[:1000], lambda b: b[:-100], lambda b: b'\xff' * 200])
def test_damaged_weights_are_named(folder, part, name, damage):
    path = folder / part / 'diffusion_pytorch_model.safetensors'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f'{part} cannot be loaded as {name}: .*diffusion_pytorch_model.safetensors.*damaged'):
        loading.from_pretrained(folder)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return open, (str(self.flag), 'w')


def pickled(folder, extra):
    """The transformer's weights as torch.save writes them, in place of the safetensors."""
    (folder / 'transformer' / 'diffusion_pytorch_model.safetensors').unlink()
    torch.save({**tiny.extractor().family.model.state_dict(), **extra}, folder / 'transformer' / 'diffusion_pytorch_model.bin')


def test_pickled_tensors_are_loaded(folder):
    expected, = Extractor.from_pretrained(folder).eval()(tiny.images(), 7)
    pickled(folder, {})
    torch.testing.assert_close(Extractor.from_pretrained(folder).eval()(tiny.images(), 7)[0], expected)


def test_pickled_code_is_refused_and_does_not_run(folder, tmp_path):
    pickled(folder, {'more': Attack(tmp_path / 'ran')})
    with pytest.raises(ValueError, match='transformer: the pickled weights .* refused.*Get them as safetensors') as caught:
        loading.from_pretrained(folder)
    assert 'weights_only' not in str(caught.value)
    assert not (tmp_path / 'ran').exists()


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


def test_an_older_name_of_the_class_is_understood(folder):
    """facebook/DiT-XL-2-256 says Transformer2DModel, which diffusers has since split up by norm_type."""
    expected, = Extractor.from_pretrained(folder).eval()(tiny.images(), 7)
    edit(folder / 'transformer' / 'config.json', _class_name='Transformer2DModel', cross_attention_dim=None)
    assert torch.equal(Extractor.from_pretrained(folder).eval()(tiny.images(), 7)[0], expected)
    edit(folder / 'transformer' / 'config.json', norm_type='layer_norm')
    with pytest.raises(ValueError, match='is a Transformer2DModel: the known'):
        loading.from_pretrained(folder)


def test_a_vae_of_another_width_is_named(folder):
    shutil.rmtree(folder / 'vae')
    AutoencoderKL(**dict(tiny.VAE, latent_channels=8)).save_pretrained(folder / 'vae')
    with pytest.raises(ValueError, match='vae/config.json: latent_channels is 8 and the DiT takes 4: use the VAE'):
        loading.from_pretrained(folder)


@pytest.mark.parametrize('changes, message', [
    (dict(_class_name='CMStochasticIterativeScheduler'), 'defines no noise process: put a DDPM'),
    (dict(_class_name='Nothing'), "'Nothing' is not a scheduler"),
    (dict(_class_name='FlowMatchEulerDiscreteScheduler', _model_time='seconds'), "_model_time is .* not 'seconds'"),
])
def test_a_scheduler_without_a_process_is_named(folder, changes, message):
    edit(folder / 'scheduler' / 'scheduler_config.json', **changes)
    with pytest.raises(ValueError, match=f'scheduler/scheduler_config.json: .*{message}'):
        loading.from_pretrained(folder)


def test_metas_file_in_place_of_a_folder_names_the_converter(tmp_path):
    torch.save({'x_embedder.proj.weight': torch.zeros(1)}, tmp_path / 'DiT-XL-2-256x256.pt')
    with pytest.raises(FileNotFoundError, match='is a file, not a folder.*dit2diffusers.py makes one'):
        loading.from_pretrained(tmp_path / 'DiT-XL-2-256x256.pt')
    with pytest.raises(FileNotFoundError, match='lacks transformer/config.json.*dit2diffusers.py makes one of DiT-XL-2-256x256'):
        loading.from_pretrained(tmp_path)


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
    assert len(Extractor.from_arch(arch).process) == 10
    assert json.dumps(arch) == before


def test_an_arch_takes_a_pretrained_vae(saved):
    parts = loading.from_arch(dict(transformer=tiny.DIT, vae=str(saved)))
    assert parts.vae.config.scaling_factor == 0.5
