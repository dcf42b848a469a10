"""What leaves the package: timm and onnxruntime give the features that we give."""
import json

import numpy as np
import pytest
import runs
import tiny
import torch
from diffusers import DDIMScheduler, DiTPipeline

from mmaselect.extract import Extractor
from mmaselect.extract.export import load_timm, timm_model, write_onnx, write_timm
from mmaselect.extract.noise import seeded_noise

onnxruntime = pytest.importorskip('onnxruntime', reason="needs the extra 'export'")
TOOL = runs.ROOT / 'tools' / 'export_vit.py'
SIZE = (24, 40)  # pixels, 6 x 10 tokens
T = 500
BLOCKS = [(block, 'hidden') for block in range(4)]


def pair(extractor, count=3):
    """Noisy latents and our features of them."""
    latent = tiny.latent(extractor, count, 12, 20)
    noise = seeded_noise(latent.shape[1:], 0)[None]
    return extractor.process.add(latent, torch.tensor([T]), noise), extractor.features(latent, T, noise)


def timm_blocks(folder, latents):
    return load_timm(folder).forward_intermediates(latents, intermediates_only=True)


def run(folder, inputs):
    session = onnxruntime.InferenceSession(folder / 'model.onnx', providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: inputs.numpy()}), strict=True))


# timm


@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('transformer', [{}, dict(attention_bias=False, activation_fn='gelu', norm_eps=1e-3)])
def test_timm_gives_the_same_blocks(fold, transformer, tmp_path):
    extractor = tiny.extractor(BLOCKS, dict(tiny.ARCH, transformer=dict(tiny.DIT, **transformer)))
    if fold:
        extractor.fold([T])
    latents, features = pair(extractor)
    write_timm(extractor, tmp_path, T, SIZE)
    for ours, theirs in zip(features, timm_blocks(tmp_path, latents), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    model = json.loads((tmp_path / 'timm.json').read_text())
    process = extractor.process
    assert [model[key] for key in ('timestep', 'signal', 'sigma')] == [T, process.signal[T].item(), process.sigma[T].item()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model.safetensors', 'timm.json']
    assert (extractor.timesteps is None) != fold


def test_timm_takes_latents_of_other_sizes(tmp_path):
    write_timm(tiny.extractor([(1, 'hidden')]), tmp_path, T)
    assert timm_blocks(tmp_path, torch.zeros(1, 4, 8, 24))[-1].shape == (1, 16, 4, 12)


# ONNX


TAPS = [(0, 'modulated'), (0, 'hidden'), (1, 'query'), (1, 'mlp')]


def test_onnx_of_latents(tmp_path):
    extractor = tiny.extractor(TAPS)
    write_onnx(extractor, tmp_path, T, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ['model.onnx']
    for count in (1, 3):
        latents, features = pair(extractor, count)
        found = run(tmp_path, latents)
        assert list(found) == ['0.modulated', '0.hidden', '1.query', '1.mlp']
        for ours, theirs in zip(features, found.values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize('arch, options', [
    (tiny.ARCH, dict(seed=3)), (dict(tiny.ARCH, vae=dict(tiny.VAE, shift_factor=0.2)), dict(noise='none')),
    (tiny.PIXEL_ARCH, dict())])
@pytest.mark.slow  # of ten seconds each; the tool's test is not
def test_onnx_of_images(arch, options, tmp_path):
    extractor = tiny.extractor([(1, 'query')], arch)
    size = SIZE if arch is not tiny.PIXEL_ARCH else (12, 20)
    write_onnx(extractor, tmp_path, T, size, inputs='images', **options)
    images = tiny.images(2, *size)
    expected, = extractor(images, T, **options)
    np.testing.assert_allclose(run(tmp_path, images)['1.query'], expected.detach().numpy(), rtol=0, atol=2e-5)


# The tool, and what is refused


def test_the_tool_writes_both_from_a_folder(tmp_path):
    extractor = tiny.extractor([(0, 'hidden')])
    DiTPipeline(extractor.family.model, extractor.encoder.vae, DDIMScheduler()).save_pretrained(tmp_path / 'dit')
    extractor = Extractor.from_pretrained(tmp_path / 'dit', [(0, 'hidden')])
    words = [tmp_path / 'dit', tmp_path / 'out', '--timestep', T, '--taps', '0.hidden', '--size', *SIZE]
    assert 'model.safetensors and timm.json, t=500, taps 0.hidden' in runs.run_here(TOOL, *words)
    runs.run_here(TOOL, *words, '--onnx', '--with-vae')
    (latents, features), images = pair(extractor), tiny.images(2, *SIZE)
    torch.testing.assert_close(timm_blocks(tmp_path / 'out', latents)[-1], features[0], rtol=0, atol=1e-5)
    expected, = extractor(images, T)
    np.testing.assert_allclose(run(tmp_path / 'out', images)['0.hidden'], expected.detach().numpy(), rtol=0, atol=2e-5)


def test_the_tool_takes_a_config_and_its_checkpoint(tmp_path):
    import mmaselect.openmm  # noqa: F401
    from mmaselect.registry import MODELS
    config = tmp_path / 'config.py'
    config.write_text(f'model = dict(backbone=dict(type="mmaselect.DiTBackbone", arch={tiny.ARCH}, taps=[(1, "hidden")]))')
    backbone = MODELS.build(dict(type='mmaselect.DiTBackbone', arch=tiny.ARCH, taps=[(1, 'hidden')], frozen=False, timestep=T))
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in backbone.state_dict().items()}), tmp_path / 'a.pth')
    runs.run_here(TOOL, config, tmp_path / 'out', '--checkpoint', tmp_path / 'a.pth', '--size', *SIZE)
    latents, features = pair(backbone.extractor)
    torch.testing.assert_close(timm_blocks(tmp_path / 'out', latents)[-1], features[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize('words, error', [
    (['dit', 'out'], 'takes --timestep'), (['dit', 'out', '--timestep', 5, '--with-vae'], 'is for --onnx'),
    (['absent', 'out', '--timestep', 5], 'absent'), (['config.py', 'out'], 'leaves the timestep open'),
    (['dit', 'out', '--timestep', 5, '--taps', 'hidden'], 'BLOCK.NAME')])
def test_the_tool_refuses_in_one_line(words, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    (tmp_path / 'config.py').write_text(f'model = dict(backbone=dict(type="mmaselect.DiTBackbone", arch={tiny.ARCH}))')
    import mmaselect.openmm  # noqa: F401
    with pytest.raises(SystemExit):
        runs.run_here(TOOL, *words)
    assert error in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / 'out').exists()


def test_what_cannot_be_exported_is_refused(tmp_path):
    extractor = tiny.extractor([(2, 'query')])
    with pytest.raises(ValueError, match="blocks are whole: take 'hidden'"):
        timm_model(extractor, T)
    with pytest.raises(ValueError, match='multiples of 4'):
        write_onnx(extractor, tmp_path, T, (22, 40))
    with pytest.raises(ValueError, match=r'folded at t=\(7,\)'):
        write_onnx(extractor.fold([7]), tmp_path, T)
    with pytest.raises(ValueError, match="not 'pictures'"):
        write_onnx(extractor, tmp_path, 7, inputs='pictures')
