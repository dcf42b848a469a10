"""LightningDiT, from files as they are published to features: equal to its arithmetic written anew in lightning.py."""
import json

import lightning
import pytest
import runs
import tiny
import torch

from mmaselect.extract import TAPS, Extractor, converters, seeded_noise
from mmaselect.extract.families.lightning_dit import LightningDiT, LightningDiTTransformer2DModel
from mmaselect.selection import SelectionPolicy, TensorImages, sweep

TOOL = runs.ROOT / 'tools' / 'model_converters' / 'dit2diffusers.py'
MEAN, STD = torch.arange(6.) - 2, torch.arange(6.) + 0.5


def family(state, dtype=torch.float64):
    model = LightningDiTTransformer2DModel(**converters.lightning_config(state))
    model.load_state_dict(converters.convert_lightning(state))
    return LightningDiT(model.to(dtype).eval())


@pytest.mark.parametrize('options', [{}, dict(qk_norm=True, heads=1, head=12), dict(shifts=False, patch=2, depth=2)])
@pytest.mark.parametrize('grid', [(4, 4), (3, 6)])
def test_it_equals_its_arithmetic(options, grid):
    """On the training's grid and on one that is stretched over it."""
    state = lightning.weights(**options)
    patch = options.get('patch', 1)
    latent = seeded_noise((3, 6, grid[0] * patch, grid[1] * patch), 1).double()
    times = torch.tensor([0.05, 0.5, 0.999])
    expected = lightning.forward({key: value.double() for key, value in state.items()}, latent, times)
    assert expected.std() > 0.1 and not torch.allclose(expected[:1], expected[1:2], atol=0.1)
    ours = family(state)
    torch.testing.assert_close(ours.predict(latent, times), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.predict(latent[:1], times[:1]), expected[:1], rtol=0, atol=1e-10)


def test_a_grid_may_go_on_beyond_the_trainings():
    """Then a corner of the size of the training's grid has the training's positions."""
    ours = family(lightning.weights(depth=1))
    latent = seeded_noise((1, 6, 6, 8), 1).double()
    taps = [(0, 'modulated'), (0, 'query')]
    ours.pos_scale = 'extrapolate'
    whole = [tokens.unflatten(1, (6, 8))[:, :4, :4].flatten(1, 2) for tokens in ours.read(latent, torch.tensor([0.5]), taps)]
    alone = ours.read(latent[..., :4, :4], torch.tensor([0.5]), taps)
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)


def test_taps_are_what_hooks_see():
    ours, latent, times = family(lightning.weights()), seeded_noise((2, 6, 3, 5), 1).double(), torch.tensor([0.3, 0.8])
    seen, inside = {}, dict(query='attn.to_q', key='attn.to_k', value='attn.to_v', attn='attn.to_out', mlp='ff', hidden='')
    for index, block in enumerate(ours.model.transformer_blocks):
        for tap, path in inside.items():
            block.get_submodule(path).register_forward_hook(
                lambda module, args, out, key=(index, tap): seen.__setitem__(key, out))
        block.attn.register_forward_pre_hook(lambda module, args, key=(index, 'modulated'): seen.__setitem__(key, args[0]))
    ours.predict(latent, times)
    taps = [(index, tap) for index in range(3) for tap in TAPS]
    assert len(seen) == len(taps) and ours.channels((0, 'mlp')) == 16
    for tap, tokens in zip(taps, ours.read(latent, times, taps), strict=True):
        assert torch.equal(tokens, seen[tap]), tap


def files(folder, state=None, vae=None, stats=None):
    """The three files as they are published."""
    torch.save(dict(ema=state or lightning.weights(), opt={}), folder / 'lightningdit-xl.pt')
    torch.save(dict(state_dict=vae or lightning.vae_weights()), folder / 'vavae.pt')
    torch.save(stats or {'mean': MEAN[None, :, None, None], 'std': STD[None, :, None, None]}, folder / 'latents_stats.pt')


def convert(folder, *options, vae='vavae.pt'):
    return runs.run_here(TOOL, folder / 'lightningdit-xl.pt', folder / vae, folder / 'out', *options)


def test_published_files_become_a_folder_that_is_loaded_and_swept(tmp_path):
    files(tmp_path)
    said = convert(tmp_path, '--latents-stats', tmp_path / 'latents_stats.pt')
    assert '3 blocks of width 16, patch 1, trained on latents of side 4, 5 classes' in said and 'that of sit' in said
    assert json.loads((tmp_path / 'out' / 'vae' / 'config.json').read_text())['latents_std'] == STD.tolist()
    made = Extractor.from_pretrained(tmp_path / 'out', [(1, 'query'), (-1, 'hidden')]).eval()
    images = tiny.images(6, 16, 24)
    latent = (lightning.encode(lightning.vae_weights(), images) - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(made.encoder(images), latent, rtol=0, atol=1e-5)
    assert made.token_stride == 4 and [one.shape for one in made(images, 7)] == [(6, 16, 4, 6)] * 2
    noise = seeded_noise((1, 6, 4, 6), 2)
    ours = made.family.predict(made.process.add(latent, torch.tensor([249]), noise), made.process.model_time[[249]])
    expected = lightning.forward(lightning.weights(), 0.75 * latent + 0.25 * noise, torch.full((6,), 0.75))  # 1 is the image
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    result = sweep(made, TensorImages(images), SelectionPolicy(score='hfr', candidates=(100, 500), controls=()))
    assert result.timestep in (100, 500)
    with pytest.raises(ValueError, match='LightningDiT cannot be folded'):
        made.fold([100])


@pytest.mark.parametrize('change, options, message', [
    (dict(), (), 'give the file with them, .* --latents-stats latents_stats.pt'),
    (dict(stats={'mean': MEAN[:4], 'std': STD[:4]}), ('--latents-stats',), r"has {'mean': \(4,\).*of 6 channels were expected"),
    (dict(vae=lightning.vae_weights(channels=4)), ('--latents-stats',), 'has latents of 4 channels, and the transformer takes 6'),
    (dict(vae=lightning.weights()), ('--latents-stats',), 'no VAE in the layout of the latent diffusion code'),
    (dict(state={**lightning.weights(), 'blocks.1.attn.gate.weight': torch.ones(1)}), ('--latents-stats',),
     r'unknown keys .*blocks\.1\.attn\.gate'),
    (dict(state={key: value for key, value in lightning.weights().items() if not key.startswith('feat_rope')}),
     ('--latents-stats',), r'feat_rope\.freqs_cos is missing: .* as it was published, with rotary positions \(use_rope\)'),
    (dict(state={**lightning.weights(), 'feat_rope.freqs_cos': torch.ones(16, 8)}), ('--latents-stats',),
     'not the table of rotary positions'),
    (dict(state={key: value for key, value in lightning.weights().items() if key != 'blocks.2.norm2.weight'}),
     ('--latents-stats',), r'transformer_blocks\.2\.norm2\.weight'),
])
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, change, options, message):
    files(tmp_path, **change)
    with pytest.raises(SystemExit, match=message):
        convert(tmp_path, *options, *([tmp_path / 'latents_stats.pt'] if options else []))
    assert {path.name for path in tmp_path.iterdir()} == {'lightningdit-xl.pt', 'vavae.pt', 'latents_stats.pt'}


def test_a_vae_that_does_not_say_its_scale_is_refused(tmp_path):
    import meta_dit
    files(tmp_path)
    torch.save(meta_dit.weights(), tmp_path / 'DiT-S-2.pt')
    with pytest.raises(SystemExit, match=r'vavae\.pt is a file, which does not say the scale of its latents'):
        runs.run_here(TOOL, tmp_path / 'DiT-S-2.pt', tmp_path / 'vavae.pt', tmp_path / 'out', '--heads', 2)


def test_the_published_size():
    """675 million parameters (arXiv:2501.01423, table 4)."""
    with torch.device('meta'):
        ours = LightningDiT(LightningDiTTransformer2DModel())
    assert (ours.depth, ours.width, ours.in_channels, ours.patch_size) == (28, 1152, 32, 1)
    assert round(sum(parameter.numel() for parameter in ours.parameters()) / 1e6) in (675, 676)
