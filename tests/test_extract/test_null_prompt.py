import pickle
import shutil

import pytest
import tiny
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file

from mmaselect.extract import Extractor, loading, null_prompt


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A checkpoint of SD3 as it comes from the hub, without its text encoders, and with a null prompt."""
    folder = tmp_path_factory.mktemp('sd3')
    parts = loading.from_arch(dict(transformer=tiny.SD3, vae=tiny.VAE, scheduler=tiny.FLOW))
    parts.transformer.save_pretrained(folder / 'transformer')
    parts.vae.save_pretrained(folder / 'vae')
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / 'scheduler')
    null_prompt.save(folder / null_prompt.FILE, parts.null, parts.transformer)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'sd3')


def other(**changes):
    """Another transformer of the same class."""
    options = {**tiny.SD3, **changes}
    del options['type']
    return SD3Transformer2DModel(**options)


def test_what_was_saved_comes_back(folder):
    parts = loading.from_pretrained(folder)
    expected = null_prompt.seeded(parts.transformer)
    assert parts.null.keys() == expected.keys() == {'prompt_embeds', 'pooled_prompt_embeds'}
    assert all(torch.equal(parts.null[key], value) for key, value in expected.items())
    assert Extractor(parts)(tiny.images(), 7)[0].isfinite().all()


def test_the_prompt_takes_the_transformers_dtype(folder):
    tensors = {key: value.half() for key, value in load_file(folder / null_prompt.FILE).items()}
    null_prompt.save(folder / null_prompt.FILE, tensors, other())
    assert Extractor.from_pretrained(folder).family.null_prompt_embeds.dtype == torch.float32


def test_a_random_model_has_the_same_prompt_every_time():
    one, two = null_prompt.seeded(other()), null_prompt.seeded(other())
    assert {key: tuple(value.shape) for key, value in one.items()} == {
        'prompt_embeds': (1, 333, 12), 'pooled_prompt_embeds': (1, 10)}
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_dit_needs_none():
    assert loading.from_arch(tiny.ARCH).null == {}


def test_a_missing_file_says_how_to_make_it(folder):
    (folder / null_prompt.FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f'has no {null_prompt.FILE}.*python tools/encode_null_prompt.py {folder}'):
        loading.from_pretrained(folder)


def test_a_hub_id_is_called_so(folder, monkeypatch):
    """The folder that it was fetched to has no text encoders."""
    wanted = []
    monkeypatch.setattr(loading, 'list_repo_files', lambda name: [f'{part}/diffusion_pytorch_model.safetensors'
                                                                  for part in ('transformer', 'vae')])
    monkeypatch.setattr(loading, 'snapshot_download', lambda name, allow_patterns: wanted.extend(allow_patterns) or folder)
    assert loading.from_pretrained('stabilityai/sd3').null
    assert null_prompt.FILE in wanted
    (folder / null_prompt.FILE).unlink()
    with pytest.raises(FileNotFoundError, match='python tools/encode_null_prompt.py stabilityai/sd3`'):
        loading.from_pretrained('stabilityai/sd3')


def damage(kind, path):
    if kind == 'truncated':
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'pickled':
        path.write_bytes(pickle.dumps({'prompt_embeds': [0.0]}))
    else:
        save_file(load_file(path), path)  # without a word of its model


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'pickled', 'anonymous'])
def test_a_damaged_file_is_named(folder, kind):
    path = folder / null_prompt.FILE
    damage(kind, path)
    with pytest.raises(ValueError, match=f'{path} is damaged.*python tools/encode_null_prompt.py {folder}'):
        loading.from_pretrained(folder)


@pytest.mark.parametrize('tensors, transformer, message', [
    (None, other(num_layers=3), 'made for num_layers=3, not 4'),
    (None, PixArtTransformer2DModel(2, 12, num_layers=1, sample_size=8), 'made for PixArtTransformer2DModel, not SD3'),
    (dict(prompt_embeds=torch.zeros(1, 333, 14), pooled_prompt_embeds=torch.zeros(1, 10)), other(), r'\(1, 333, 14\)'),
    (dict(prompt_embeds=torch.zeros(1, 333, 12), pooled_prompt_embeds=torch.zeros(1, 9)), other(), r'\(1, 9\)'),
    (dict(prompt_embeds=torch.zeros(1, 333, 12)), other(), 'takes.*pooled_prompt_embeds'),
    (dict(pooled_prompt_embeds=torch.zeros(1, 10)), other(), "takes.*'prompt_embeds'"),
    (dict(prompt_embeds=torch.zeros(12), pooled_prompt_embeds=torch.zeros(1, 10)), other(), r'\(12,\)'),
])
def test_a_file_of_another_model_is_refused(folder, tensors, transformer, message):
    path = folder / null_prompt.FILE
    null_prompt.save(path, tensors or load_file(path), transformer)
    with pytest.raises(ValueError, match=f'{path} is of another model: .*{message}.*encode_null_prompt.py'):
        loading.from_pretrained(folder)


def test_another_number_of_tokens_is_fine(folder):
    """As with text_encoder_3=None or another max_sequence_length."""
    null_prompt.save(folder / null_prompt.FILE,
                     dict(prompt_embeds=torch.ones(1, 77, 12), pooled_prompt_embeds=torch.zeros(1, 10)), other())
    assert Extractor.from_pretrained(folder).family.null_prompt_embeds.shape == (1, 77, 12)


def test_options_of_another_version_of_diffusers_do_not_matter(folder):
    older = other()
    older.register_to_config(an_option_that_is_gone=1)
    null_prompt.save(folder / null_prompt.FILE, null_prompt.seeded(older), older)
    assert loading.from_pretrained(folder).null


def test_overflow_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match='prompt_embeds has values that are not finite.*float16'):
        null_prompt.save(tmp_path / 'null.safetensors', dict(prompt_embeds=torch.full((1, 2), float('inf'))), other())
    assert not list(tmp_path.iterdir())


def test_the_vae_and_the_scheduler_are_the_checkpoints_own(folder):
    """SD3's shift of the noise levels and of the latents, as diffusers' pipelines apply them."""
    AutoencoderKL(**tiny.VAE, shift_factor=0.0609).save_pretrained(folder / 'vae')
    extractor = Extractor.from_pretrained(folder).double()
    vae, images = extractor.encoder.vae, tiny.images(dtype=torch.float64)
    torch.testing.assert_close(extractor.encoder(images), (vae.encode(images).latent_dist.mode() - 0.0609) * 0.5)
    assert extractor.process.sigma[499] == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))
