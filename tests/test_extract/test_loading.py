import json
import shutil

import diffusers
import pytest
import tiny
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

from mmaselect.extract import Extractor, loading
from mmaselect.extract.families import FAMILIES


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
    with pytest.raises(ValueError, match='is a UNet2DModel: the known transformers are DiTTransformer2DModel.*'
                                         r'To add it, copy the file .* in mmaselect/extract/families/'):
        loading.from_pretrained(folder)


@pytest.mark.parametrize('name', sorted(name for name in dir(diffusers) if name.endswith('Transformer2DModel')
                                        and name not in FAMILIES))
def test_what_diffusers_has_and_we_do_not_is_refused_with_the_file_to_copy(name):
    with pytest.raises(ValueError, match=f'{name}. is not supported: .* copy the file .*mmaselect/extract/families/'):
        loading.from_arch(dict(transformer=dict(type=name)))


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
    with pytest.raises(ValueError, match='vae/config.json: .* AutoencoderKL have 8 channels and the DiT takes 4: use the VAE'):
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
    for name in ('list_repo_files', 'snapshot_download'):
        monkeypatch.setattr(loading, name, lambda *_, **__: (_ for _ in ()).throw(ConnectionError('no route')))
    with pytest.raises(FileNotFoundError, match='neither a folder nor a model.*no route.*give the path of its folder'):
        loading.from_pretrained('facebook/DiT-XL-2-512')


@pytest.mark.parametrize('arch, message', [
    ({}, 'arch takes transformer'), (None, 'arch is a dict of transformer'), ([tiny.DIT], 'arch is a dict of transformer'),
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


@pytest.fixture
def halves(folder):
    """As variant='fp16' saves it: only files of that variant."""
    pipeline = DiTPipeline.from_pretrained(folder).to(torch.float16)
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, variant='fp16')
    assert [path.name for path in (folder / 'vae').glob('*.safetensors')] == ['diffusion_pytorch_model.fp16.safetensors']
    return folder


def test_the_only_variant_is_taken(halves, saved):
    expected, = Extractor.from_pretrained(saved).eval()(tiny.images(), 7)
    for options in ({}, dict(variant='fp16')):
        extractor = Extractor.from_pretrained(halves, **options).eval()
        assert extractor.family.model.dtype == extractor.encoder.vae.dtype == torch.float32
        torch.testing.assert_close(extractor(tiny.images(), 7)[0], expected, rtol=0.02, atol=0.02)


def test_a_variant_is_taken_where_there_are_others(folder, saved):
    half = DiTPipeline.from_pretrained(saved).transformer
    with torch.no_grad():
        half.proj_out_2.bias.add_(1)
    half.save_pretrained(folder / 'transformer', variant='ema')
    plain, ema = (loading.from_pretrained(folder, variant=variant).transformer.proj_out_2.bias for variant in (None, 'ema'))
    torch.testing.assert_close(ema, plain + 1)  # and the VAE, which has no such files, is there too
    with pytest.raises(ValueError, match="dit/transformer has no weights of variant='fp16': there are 'ema'"):
        loading.from_pretrained(folder, variant='fp16')


def test_parts_of_large_files_are_loaded(folder):
    """Sharded, as models over 10 GB are."""
    expected, = Extractor.from_pretrained(folder).eval()(tiny.images(), 7)
    transformer = loading.from_pretrained(folder).transformer
    shutil.rmtree(folder / 'transformer')
    transformer.save_pretrained(folder / 'transformer', max_shard_size='20KB')
    assert len(list((folder / 'transformer').glob('*-of-*.safetensors'))) > 1
    assert torch.equal(Extractor.from_pretrained(folder).eval()(tiny.images(), 7)[0], expected)
    next((folder / 'transformer').glob('*-of-*.safetensors')).unlink()
    with pytest.raises(ValueError, match='transformer cannot be loaded'):
        loading.from_pretrained(folder)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_a_dtype_is_of_the_transformer_alone(folder, dtype):
    extractor = Extractor.from_pretrained(folder, dtype=dtype).eval()
    assert {p.dtype for p in extractor.family.parameters()} == {getattr(torch, dtype)}
    assert extractor.encoder.vae.dtype == torch.float32
    if dtype == 'bfloat16':
        assert extractor(tiny.images(), 7)[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype is one of float32, .* not 'half'"):
        loading.from_pretrained(folder, dtype='half')


def test_layers_that_stay_in_float32_do(folder, monkeypatch):
    """As SD3's positions and SANA's tables: diffusers loads such classes with accelerate alone."""
    from diffusers import DiTTransformer2DModel
    monkeypatch.setattr(DiTTransformer2DModel, '_keep_in_fp32_modules', ['proj_out_2'])
    model = loading.from_pretrained(folder, dtype='bfloat16').transformer
    assert model.proj_out_2.weight.dtype == torch.float32 and model.proj_out_1.weight.dtype == torch.bfloat16


def test_one_sentence_and_not_a_screen(folder, caplog, capfd):
    edit(folder / 'transformer' / 'config.json', num_layers=3)
    with pytest.raises(ValueError, match='unexpected keys'):
        loading.from_pretrained(folder)
    assert 'Some weights' not in caplog.text + ''.join(capfd.readouterr())


def test_a_class_that_diffusers_lacks_is_named(folder, monkeypatch):
    monkeypatch.setitem(loading.FAMILIES, 'Flux9Transformer2DModel', None)
    edit(folder / 'transformer' / 'config.json', _class_name='Flux9Transformer2DModel')
    message = f'diffusers {diffusers.__version__} has no Flux9Transformer2DModel: install a newer one'
    with pytest.raises(ValueError, match=message):
        loading.from_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        loading.from_arch(dict(transformer=dict(type='Flux9Transformer2DModel')))


def test_an_unknown_vae_is_named(folder):
    edit(folder / 'vae' / 'config.json', _class_name='VQModel')
    with pytest.raises(ValueError, match='vae is a VQModel: the known VAEs are AutoencoderKL'):
        loading.from_pretrained(folder)
    with pytest.raises(ValueError, match="arch.vae.type 'VQModel' is not supported"):
        loading.from_arch(dict(tiny.ARCH, vae=dict(type='VQModel')))


def hub(monkeypatch, folder, more=()):
    """A hub that has the files of ``folder`` and ``more``; returns what is fetched of it and the revision asked for."""
    fetched = {}
    files = [str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()]

    def fetch(name, allow_patterns, revision=None):
        fetched.update(patterns=allow_patterns, revision=revision)
        return str(folder)

    monkeypatch.setattr(loading, 'list_repo_files', lambda name, revision=None: [*files, *more])
    monkeypatch.setattr(loading, 'snapshot_download', fetch)
    return fetched


def test_of_a_hub_model_one_variant_is_fetched(folder, monkeypatch):
    names = ['diffusion_pytorch_model.fp16.safetensors', 'diffusion_pytorch_model.bin', 'flax_model.msgpack']
    fetched = hub(monkeypatch, folder, [f'{part}/{name}' for part in ('transformer', 'vae') for name in names])
    loading.from_pretrained('some/model', revision='v1')
    weights = [pattern for pattern in fetched['patterns'] if 'diffusion_pytorch_model' in pattern or pattern.endswith('/*')]
    assert weights == ['scheduler/*', *(f'{part}/diffusion_pytorch_model.safetensors' for part in ('transformer', 'vae'))]
    assert fetched['revision'] == 'v1'
    with pytest.raises(ValueError, match="no weights of variant='bf16': there are 'fp16'"):
        loading.from_pretrained('some/model', variant='bf16')


def test_a_revision_of_a_folder_is_refused(folder):
    with pytest.raises(ValueError, match="revision='v1' is of a model on the hub"):
        loading.from_pretrained(folder, revision='v1')


def test_a_gated_model_says_what_to_do(monkeypatch):
    from types import SimpleNamespace

    from huggingface_hub.errors import GatedRepoError

    def refuse(name):
        raise GatedRepoError('403', response=SimpleNamespace(headers={}, request=None, status_code=403))
    monkeypatch.setattr(loading, 'list_repo_files', refuse)
    with pytest.raises(FileNotFoundError, match='accepted its licence: do so at https://huggingface.co/black/flux, then log in'):
        loading.from_pretrained('black/flux')


def test_weights_in_one_file(folder, monkeypatch, tmp_path):
    """diffusers turns the authors' layout into its own; what it is given and what is checked."""
    from diffusers import DiTTransformer2DModel
    whole = loading.from_pretrained(folder).transformer
    given = {}

    def from_single_file(path, **options):
        given.update(options, path=path)
        return whole
    monkeypatch.setattr(DiTTransformer2DModel, 'from_single_file', from_single_file, raising=False)
    parts = loading.from_pretrained(folder, single_file=tmp_path / 'dit.safetensors', dtype='bfloat16')
    assert parts.transformer is whole and given['path'] == str(tmp_path / 'dit.safetensors')
    assert (given['config'], given['subfolder'], given['torch_dtype']) == (str(folder), 'transformer', torch.bfloat16)
    whole.proj_out_1.to('meta')
    with pytest.raises(ValueError, match=r"missing keys \['proj_out_1.bias', 'proj_out_1.weight'\]"):
        loading.from_pretrained(folder, single_file=tmp_path / 'dit.safetensors')
