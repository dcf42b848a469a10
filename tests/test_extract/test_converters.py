"""Meta's layout, converted: equal to a forward pass written from the paper, at every size by name, or a clear refusal."""
import argparse
import pickle

import meta_dit
import pytest
import tiny
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from safetensors.torch import save_file

from mmaselect.extract import Extractor, NoiseProcess, converters, seeded_noise
from mmaselect.extract.loading import Parts

# Parameters in millions: DiT's paper, table 1, for patch 2.
MILLIONS = {'S': 33, 'B': 130, 'L': 458, 'XL': 675}


def converted(state, heads=2, process='dit', dtype=torch.float32):
    """A Extractor of a converted state dict, without the way over the disk."""
    config = converters.transformer_config(state, heads=heads)
    model = DiTTransformer2DModel(**config)
    model.load_state_dict(converters.convert(state, config['num_layers'])[0])
    model.register_to_config(_downscale_freq_shift=0)
    vae = AutoencoderKL(**dict(tiny.VAE, latent_channels=config['in_channels']))
    return Extractor(Parts(model, vae, NoiseProcess.from_scheduler(converters.scheduler_of(process)))).to(dtype).eval()


def predict(extractor, latent, t, noise):
    return extractor.family.predict(extractor.process.add(latent, t, noise), extractor.process.model_time[t])


@pytest.mark.parametrize('options, heads', [
    ({}, 2), (dict(patch=4, width=24, depth=2), 3), (dict(out=4, channels=4), 1), (dict(channels=3, out=3, side=6), 4)])
def test_a_converted_dit_equals_the_papers_forward(options, heads):
    state = meta_dit.weights(**options)
    extractor = converted(state, heads)
    side = options.get('side', 4) * options.get('patch', 2)
    latent, noise = (seeded_noise((3, options.get('channels', 4), side, side), seed) for seed in (1, 2))
    t = torch.tensor([0, 371, 999])
    share = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t, None, None, None]
    noisy = (share.sqrt() * latent + (1 - share).sqrt() * noise).float()
    expected = meta_dit.forward(state, noisy, t, heads)
    assert expected.std() > 0.1 and not torch.allclose(expected[:1], expected[1:2], atol=0.1)
    torch.testing.assert_close(predict(extractor, latent, t, noise), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('process, model_time', [('sit', lambda sigma: 1 - sigma), ('repa', lambda sigma: sigma)])
def test_a_converted_sit_equals_the_linear_interpolant(process, model_time):
    """SiT and REPA mix signal and noise alike and count time in opposite directions."""
    state = meta_dit.weights(out=8 if process == 'sit' else 4)
    extractor = converted(state, process=process)
    latent, noise = seeded_noise((3, 4, 8, 8), 1), seeded_noise((3, 4, 8, 8), 2)
    t = torch.tensor([0, 499, 899])
    sigma = torch.tensor([0.001, 0.5, 0.9])
    noisy = (1 - sigma)[:, None, None, None] * latent + sigma[:, None, None, None] * noise
    expected = meta_dit.forward(state, noisy, model_time(sigma), 2)
    torch.testing.assert_close(predict(extractor, latent, t, noise), expected, rtol=0, atol=1e-5)
    wrong = meta_dit.forward(state, noisy, 1 - model_time(sigma), 2)
    assert not torch.allclose(expected[0], wrong[0], atol=1e-2)  # the direction is seen


def test_the_output_of_a_converted_dit_equals_diffusers_forward():
    extractor = converted(meta_dit.weights(), dtype=torch.float64)
    latent, noise = (seeded_noise((2, 4, 8, 8), seed).double() for seed in (1, 2))
    t = torch.tensor([3, 500])
    noisy = extractor.process.add(latent, t, noise)
    reference = extractor.family.model(noisy, timestep=t, class_labels=torch.full((2,), 5)).sample
    torch.testing.assert_close(predict(extractor, latent, t, noise), reference, rtol=0, atol=1e-10)


def test_without_the_mark_diffusers_own_frequencies_are_kept():
    """facebook/DiT-XL-2-256 is run as diffusers runs it."""
    extractor = tiny.extractor()
    times = torch.tensor([500.0])
    for block in extractor.family.model.transformer_blocks:
        frequencies = block.norm1.emb.time_proj(times)[0, :128].acos()  # cosines first; the slow ones do not wrap
        assert frequencies[-1].item() == pytest.approx(500 * 10000 ** (-127 / 127), rel=1e-3)
    marked = converted(meta_dit.weights()).family.model.transformer_blocks[2].norm1.emb.time_proj(times)[0, :128].acos()
    assert marked[-1].item() == pytest.approx(500 * 10000 ** (-127 / 128), rel=1e-3)


def test_equal_embedders_are_one_and_others_are_not():
    extractor = converted(meta_dit.weights())
    one, *others = (block.norm1.emb for block in extractor.family.model.transformer_blocks)
    assert all(other is one for other in others)
    one, *others = (block.norm1.emb for block in tiny.extractor().family.model.transformer_blocks)
    assert not any(other is one for other in others)


@pytest.mark.parametrize('arch', [f'DiT-{size}/{patch}' for size in MILLIONS for patch in (2, 4, 8)])
def test_real_shapes_of_every_arch(arch):
    depth, width, heads, patch = converters.ARCHS[arch]
    state = meta_dit.weights(depth=depth, width=width, patch=patch, side=4, classes=1000, device='meta')
    config = converters.transformer_config(state, arch=arch)
    assert config == converters.transformer_config(state) == converters.transformer_config(state, arch=arch.replace('D', 'S'))
    assert (config['num_attention_heads'], config['sample_size'], config['out_channels']) == (heads, 4 * patch, 8)
    with torch.device('meta'):
        model = DiTTransformer2DModel(**config)
    weights, left = converters.convert(state, depth)
    assert {key: value.shape for key, value in weights.items()} == {key: v.shape for key, v in model.state_dict().items()}
    assert not left
    if patch == 2:
        learned = sum(value.numel() for key, value in state.items() if key != 'pos_embed')
        assert round(learned / 1e6) == MILLIONS[arch[4:-2]]


def test_repas_projectors_are_left_out_and_named():
    state = meta_dit.weights()
    extra = {f'projectors.0.{i}.{kind}': torch.zeros(2) for i in (0, 2, 4) for kind in ('weight', 'bias')}
    weights, left = converters.convert({**state, **extra}, 3)
    assert left == list(extra)
    assert weights.keys() == converters.convert(state, 3)[0].keys()


@pytest.mark.parametrize('change, message', [
    (lambda s: s.pop('blocks.1.mlp.fc1.bias'), r'blocks\.1\.mlp\.fc1\.bias is missing'),
    (lambda s: s.update({'blocks.0.attn.q_norm.weight': torch.ones(8)}), r'unknown keys .*attn\.q_norm\.weight'),
    (lambda s: s.update(pos_embed=s['pos_embed'].roll(1, 1)), 'pos_embed is not the sin-cos table'),
    (lambda s: s.update(pos_embed=s['pos_embed'][:, 1:]), r'pos_embed is \(1, 15, 16\): a square grid'),
])
def test_weights_of_another_network_are_refused(change, message):
    state = meta_dit.weights()
    change(state)
    with pytest.raises(ValueError, match=message):
        converters.convert(state, 3)


@pytest.mark.parametrize('options, message', [
    (dict(arch='DiT-XL/3'), "'DiT-XL/3' is not known: choose one of DiT-S/2"),
    (dict(arch='DiT-S/2'), r'DiT-S/2 has 12 blocks of width 384 and patch 2; the file has 3 of width 16 and patch 2 '
                           r'\(x_embedder.proj.weight \(16, 4, 2, 2\)\)'),
    ({}, r'3 blocks of width 16 are none of .*--heads'),
    (dict(heads=3), 'a divisor of the width'),
])
def test_a_size_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        converters.transformer_config(meta_dit.weights(), **options)


def test_another_patch_than_the_name_says_is_refused():
    state = meta_dit.weights(depth=12, width=384, patch=4, device='meta')
    with pytest.raises(ValueError, match='DiT-S/2 has .* and patch 2; the file has 12 of width 384 and patch 4'):
        converters.transformer_config(state, arch='DiT-S/2')


def test_another_layout_is_refused():
    with pytest.raises(ValueError, match="x_embedder.proj.weight is missing: these are not weights in the layout of Meta's"):
        converters.transformer_config({'patch_embed.weight': torch.zeros(2)})


@pytest.mark.parametrize('path, keys, process', [
    ('DiT-XL-2-256x256.pt', [], 'dit'), ('SiT-XL-2-256x256.pt', [], 'sit'), ('x/003-DiT-B-4/checkpoints/0400000.pt', [], 'dit'),
    ('dit-xl-to-sit-s/last.pt', [], 'sit'), ('DiT-XL-2.pt', ['projectors.0.0.weight'], 'repa')])
def test_the_process_is_told_by_keys_or_path(path, keys, process):
    assert converters.process_of(path, dict.fromkeys(keys)) == process
    assert converters.process_of(path, dict.fromkeys(keys), 'SiT-S/2') == ('repa' if keys else 'sit')


@pytest.mark.parametrize('path', ['last.pt', 'transit-line/last.pt', 'sitting-s/last.pt'])
def test_a_process_that_nothing_tells_is_asked_for(path):
    with pytest.raises(ValueError, match=f'{path} tell DiT from SiT.*--process'):
        converters.process_of(path, {})


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: dict(model=s), lambda s: dict(state_dict=s)])
def test_weights_are_found_where_they_are_nested(tmp_path, wrap):
    torch.save(wrap({'a': torch.ones(2)}), tmp_path / 'a.pt')
    assert converters.read_checkpoint(tmp_path / 'a.pt')['a'].tolist() == [1, 1]


def test_a_training_checkpoint_gives_its_ema(tmp_path):
    checkpoint = dict(model={'a': torch.zeros(2)}, ema={'a': torch.ones(2)}, opt={'state': {}, 'param_groups': [dict(lr=1e-4)]})
    if hasattr(torch.serialization, 'safe_globals'):
        checkpoint['args'] = argparse.Namespace(model='DiT-XL/2', image_size=256)
    torch.save(checkpoint, tmp_path / 'a.pt')
    assert converters.read_checkpoint(tmp_path / 'a.pt')['a'].tolist() == [1, 1]


def test_safetensors_are_read(tmp_path):
    save_file({'a': torch.ones(2)}, tmp_path / 'a.safetensors')
    assert converters.read_checkpoint(tmp_path / 'a.safetensors')['a'].tolist() == [1, 1]


@pytest.mark.parametrize('name', ['a.pt', 'a.safetensors'])
@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, name, share):
    (save_file if name.endswith('safetensors') else torch.save)({'a': torch.ones(5000)}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(ValueError, match=f'{name} is cut off, damaged or no checkpoint: copy it again'):
        converters.read_checkpoint(tmp_path / name)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return open, (str(self.flag), 'w')


@pytest.mark.parametrize('save', [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_file_with_code_is_refused_and_nothing_runs(tmp_path, save):
    save(dict(ema=meta_dit.weights(), extra=Attack(tmp_path / 'ran')), tmp_path / 'a.pt')
    with pytest.raises(ValueError, match=r'a\.pt is refused: it holds \S+ that is not plain data') as caught:
        converters.read_checkpoint(tmp_path / 'a.pt')
    assert 'weights_only' not in str(caught.value)
    assert not (tmp_path / 'ran').exists()


def test_other_content_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / 'a.pt')
    with pytest.raises(ValueError, match='a.pt holds no weights by name'):
        converters.read_checkpoint(tmp_path / 'a.pt')
    with pytest.raises(FileNotFoundError, match='b.pt is not a file'):
        converters.read_checkpoint(tmp_path / 'b.pt')
