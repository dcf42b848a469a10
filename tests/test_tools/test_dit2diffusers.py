"""The converter, from a file of Meta's to the features of the folder that it writes."""
import json

import meta_dit
import pytest
import runs
import tiny
import torch
from diffusers import AutoencoderKL, DiTPipeline
from safetensors import safe_open

from mmaselect.extract import Extractor, seeded_noise

TOOL = runs.ROOT / 'tools' / 'model_converters' / 'dit2diffusers.py'
PROJECTORS = [f'projectors.0.{index}.{kind}' for index in (0, 2, 4) for kind in ('weight', 'bias')]


@pytest.fixture(scope='module')
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sd-vae')
    AutoencoderKL(**tiny.VAE).save_pretrained(folder)
    return folder


def convert(folder, vae, name='DiT-S-2.pt', state=None, options=('--heads', 2)):
    torch.save(state or meta_dit.weights(), folder / name)
    return runs.run_here(TOOL, folder / name, vae, folder / 'out', *options)


def check(folder, state, t, signal, sigma, model_time):
    """The folder's prediction at t against a forward pass written from the paper."""
    extractor = Extractor.from_pretrained(folder).eval()
    latent, noise = seeded_noise((1, 4, 8, 8), 1), seeded_noise((1, 4, 8, 8), 2)
    ours = extractor.family.predict(extractor.process.add(latent, torch.tensor([t]), noise), extractor.process.model_time[[t]])
    expected = meta_dit.forward(state, signal * latent + sigma * noise, torch.tensor([model_time]), 2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    return extractor


def test_a_dit_is_converted(vae, tmp_path):
    said = convert(tmp_path, vae)
    assert '3 blocks of width 16, patch 2' in said and 'the noise process is that of dit' in said
    share = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[600].item()
    extractor = check(tmp_path / 'out', meta_dit.weights(), 600, share ** 0.5, (1 - share) ** 0.5, 600)
    assert extractor(tiny.images(), 7)[0].shape == (2, 16, 4, 4)
    blocks = extractor.family.model.transformer_blocks
    assert blocks[2].norm1.emb is blocks[0].norm1.emb
    assert not list(tmp_path.glob('.*'))


def test_diffusers_reads_what_was_written(vae, tmp_path):
    convert(tmp_path, vae)
    pipeline = DiTPipeline.from_pretrained(tmp_path / 'out', low_cpu_mem_usage=False)
    assert pipeline.transformer.config.norm_eps == 1e-6 and pipeline.scheduler.config.num_train_timesteps == 1000
    # safetensors holds no tensor under two names, and diffusers wants the embedder in every block: it is stored in each.
    with safe_open(tmp_path / 'out' / 'transformer' / 'diffusion_pytorch_model.safetensors', 'pt') as file:
        assert sum(key.endswith('embedding_table.weight') for key in file.keys()) == 3  # noqa: SIM118, not a dict


@pytest.mark.parametrize('name, extra, options, t, model_time', [
    ('SiT-S-2-256.pt', [], (), 249, 0.75), ('SiT-S-2.pt', PROJECTORS, (), 249, 0.25),
    ('last.pt', [], ('--process', 'sit'), 0, 0.999),
])
def test_a_sit_is_converted(vae, tmp_path, name, extra, options, t, model_time):
    state = meta_dit.weights()
    said = convert(tmp_path, vae, name, {**state, **dict.fromkeys(extra, torch.zeros(2))}, ('--heads', 2, *options))
    assert ('left out' in said) == bool(extra) and all(key in said for key in extra)
    sigma = (t + 1) / 1000
    check(tmp_path / 'out', state, t, 1 - sigma, sigma, model_time)
    config = json.loads((tmp_path / 'out' / 'scheduler' / 'scheduler_config.json').read_text())
    assert config['_class_name'] == 'FlowMatchEulerDiscreteScheduler'


def test_latents_of_repa_e_are_normalised_as_its_network_did(vae, tmp_path):
    norm = torch.nn.BatchNorm2d(4, eps=1e-4, affine=False).eval()
    norm.running_mean.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.01, 9.0]))
    state = meta_dit.weights()
    convert(tmp_path, vae, 'last.pt', {**state, **{f'bn.{name}': value for name, value in norm.state_dict().items()}})
    extractor = check(tmp_path / 'out', state, 249, 0.75, 0.25, 0.25)
    images = tiny.images(2, 16, 24)
    expected = norm(AutoencoderKL.from_pretrained(vae).encode(images).latent_dist.mode())
    torch.testing.assert_close(extractor.encoder(images), expected, rtol=1e-4, atol=1e-4)


def test_a_pipelines_vae_is_taken(vae, tmp_path):
    (tmp_path / 'pipeline').mkdir()
    (tmp_path / 'pipeline' / 'vae').symlink_to(vae)
    convert(tmp_path, tmp_path / 'pipeline')
    assert (tmp_path / 'out' / 'vae' / 'diffusion_pytorch_model.safetensors').is_file()


@pytest.mark.parametrize('options, message', [
    (('--arch', 'DiT-S/2'), r'DiT-S-2\.pt was not converted: arch DiT-S/2 has 12 blocks of width 384.*the file has 3'),
    ((), 'none of .*--heads'),
    (('--heads', 2, '--arch', 'DiT-M/2'), "'DiT-M/2' is not known"),
])
def test_what_does_not_fit_is_refused_and_leaves_nothing(vae, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        convert(tmp_path, vae, options=options)
    assert {path.name for path in tmp_path.iterdir()} == {'DiT-S-2.pt'}


def test_an_mlp_of_another_width_is_refused(vae, tmp_path):
    state = meta_dit.weights()
    state['blocks.1.mlp.fc1.weight'] = state['blocks.1.mlp.fc1.weight'][:32]
    with pytest.raises(SystemExit, match=r'size mismatch for transformer_blocks\.1\.ff\.net\.0\.proj\.weight'):
        convert(tmp_path, vae, state=state)
    assert not (tmp_path / 'out').exists()


def test_a_vae_of_another_width_is_refused(tmp_path):
    AutoencoderKL(**dict(tiny.VAE, latent_channels=8)).save_pretrained(tmp_path / 'wide')
    with pytest.raises(SystemExit, match='wide/config.json: the latents of this AutoencoderKL have 8 channels and .* takes 4'):
        convert(tmp_path, tmp_path / 'wide')
    with pytest.raises(SystemExit, match='lacks nothing/config.json'):
        convert(tmp_path, tmp_path / 'nothing')
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_exists_is_kept(vae, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'precious').touch()
    with pytest.raises(SystemExit, match='out exists already: choose another folder or remove this one'):
        convert(tmp_path, vae)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['precious']
