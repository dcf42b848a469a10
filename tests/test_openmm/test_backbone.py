import shutil
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import DiTTransformer2DModel
from mmengine.runner.checkpoint import load_state_dict

from mmaselect.extract import loading
from mmaselect.openmm import DiTBackbone
from mmaselect.registry import MODELS


def test_without_a_choice_the_error_names_three_ways_out():
    with pytest.raises(RuntimeError, match='timestep=.*checkpoint.*AutoTimestepHook'):
        tiny.backbone()(tiny.images())


def test_gives_a_map_per_tap():
    maps = tiny.backbone(timestep=50, taps=[[0, 'query'], [-1, 'hidden']])(tiny.images(2, 12, 20))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 3, 5)] * 2


@pytest.mark.parametrize('load', ['strict', 'mmengine'])
def test_the_choice_travels_in_the_state_dict(load):
    source, target = tiny.backbone(timestep=50), tiny.backbone()
    if load == 'strict':
        target.load_state_dict(source.state_dict())
    else:
        load_state_dict(target, source.state_dict(), strict=True)
    assert target.chosen == 50
    assert torch.equal(source(tiny.images())[0], target(tiny.images())[0])


def test_a_fixed_timestep_beats_the_checkpoints_and_says_so(folder):
    target = tiny.backbone(pretrained=folder, timestep=80)
    expected = target(tiny.images())[0]
    with pytest.warns(UserWarning, match='made at timestep 50 and the config fixes timestep=80'):
        target.load_state_dict(tiny.backbone(pretrained=folder, timestep=50).state_dict())
    assert target.chosen == 80 and torch.equal(target(tiny.images())[0], expected)


def test_a_fixed_timestep_meets_an_undecided_checkpoint_in_silence(recwarn):
    target = tiny.backbone(timestep=80)
    target.load_state_dict(tiny.backbone().state_dict())
    assert target.chosen == 80 and not recwarn.list


def test_frozen_stays_frozen():
    model = tiny.backbone(timestep=50).train()
    assert model.training and not any(m.training for m in model.extractor.modules())
    assert not any(p.requires_grad for p in model.parameters())
    # Of pixels, since the VAE of a latent DiT lets no gradient through in any case.
    pixels = tiny.backbone(arch=tiny.PIXEL_ARCH, timestep=50).train()
    assert not pixels(tiny.images().requires_grad_())[0].requires_grad


def test_fine_tuning_trains_what_is_used_and_never_the_vae():
    model = tiny.backbone(timestep=50, frozen=False, taps=[(1, 'hidden')]).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model(tiny.images())[0].square().sum().backward()
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained and not any('vae' in name or 'blocks.2' in name for name in trained)
    assert not any(m.training for m in model.extractor.encoder.modules())


def test_random_noise_is_random_in_training_only():
    model = tiny.backbone(timestep=500, noise='random').train()
    assert not torch.equal(model(tiny.images())[0], model(tiny.images())[0])
    model.eval()
    assert torch.equal(model(tiny.images())[0], model(tiny.images())[0])


@pytest.mark.parametrize('options, message', [
    (dict(arch=None), 'either pretrained'),
    (dict(pretrained='folder', arch=tiny.ARCH), 'either pretrained'),
    (dict(arch=tiny.ARCH, noise='white'), "not 'white'"),
    (dict(arch=tiny.ARCH, timestep=1000), r'timestep=1000 is no integer in \[0, 999\]'),
    (dict(arch=tiny.ARCH, timestep='50'), "timestep='50' is no integer in"),
    (dict(arch=tiny.ARCH, timestep=True), 'timestep=True is no integer in'),
    (dict(arch=tiny.ARCH, timestep=[50, 50.5], fold=False), 'timestep=50.5 is no integer in'),
    (dict(arch=tiny.ARCH, num_timesteps='2'), "num_timesteps='2': an integer, 1 or more"),
    (dict(arch=tiny.ARCH, vae_pixels=0), '0 image pixels at a time: an integer from 1 on'),
    (dict(arch=tiny.ARCH, taps=None), 'taps is a list of pairs'),
    (dict(arch=tiny.ARCH, taps=[(9, 'hidden')]), 'out of range'),
])
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiTBackbone(**options)


@pytest.mark.parametrize('timestep', [50.5, True, '50', None, [50.0]])
def test_what_is_no_timestep_is_not_selected(timestep):
    model = tiny.backbone(fold=False)
    with pytest.raises(ValueError, match=r'is no integer in \[0, 999\]'):
        model.select(timestep)
    assert model.chosen is None


def test_options_are_not_changed():
    taps = [[0, 'query'], [-1, 'hidden']]
    tiny.backbone(taps=taps)
    assert taps == [[0, 'query'], [-1, 'hidden']]


def test_the_variant_is_that_of_the_config(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'dit')
    model = DiTTransformer2DModel.from_pretrained(folder, subfolder='transformer')
    with torch.no_grad():
        model.pos_embed.proj.bias.add_(1)
    model.save_pretrained(tmp_path / 'dit' / 'transformer', variant='ema')
    model.save_pretrained(tmp_path / 'moved')
    plain, ema = (tiny.backbone(pretrained=str(tmp_path / 'dit'), timestep=50, variant=variant)(tiny.images())[0]
                  for variant in (None, 'ema'))
    assert torch.equal(plain, tiny.backbone(pretrained=folder, timestep=50)(tiny.images())[0])
    shutil.rmtree(tmp_path / 'dit' / 'transformer')
    shutil.copytree(tmp_path / 'moved', tmp_path / 'dit' / 'transformer')
    expected = tiny.backbone(pretrained=str(tmp_path / 'dit'), timestep=50)(tiny.images())[0]
    assert torch.equal(ema, expected) and not torch.allclose(ema, plain)


def test_the_revision_is_that_of_the_config(folder, monkeypatch):
    asked, files = [], [str(path.relative_to(folder)) for path in Path(folder).rglob('*') if path.is_file()]
    monkeypatch.setattr(loading, 'list_repo_files', lambda name, revision=None: asked.append(revision) or files)
    monkeypatch.setattr(loading, 'snapshot_download', lambda name, revision=None, **_: asked.append(revision) or folder)
    tiny.backbone(pretrained='some/model', timestep=50, revision='v1')
    assert asked == ['v1', 'v1']


def test_a_dit_in_bfloat16_feeds_a_neck_in_float32(folder):
    exact, half = (tiny.backbone(pretrained=folder, timestep=50, dtype=dtype)(tiny.images(2, 12, 20))[0]
                   for dtype in (None, 'bfloat16'))
    neck = MODELS.build(dict(type='mmaselect.AutoTimestepNeck', in_channels=16, output='pyramid', norm='layer'))
    assert half.dtype == torch.float32 and [level.dtype for level in neck((half,))] == [torch.float32] * 4
    assert 0 < (half - exact).abs().max() < 0.1 * exact.abs().max()
