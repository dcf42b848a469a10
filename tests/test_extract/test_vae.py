"""Latents of each class of VAE, as the img2img pipelines of diffusers make them before they add noise."""
import diffusers
import pytest
import tiny
import torch
from torch import nn

from mmaselect.extract import loading
from mmaselect.extract.latent import LatentEncoder
from mmaselect.extract.vae import Adapter, adapter

STATISTICS = dict(latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[0.5, 2.0, 1.5, 3.0])
OPTIONS = {
    'AutoencoderKL': dict(tiny.VAE, **STATISTICS),
    'AutoencoderKLFlux2': {key: value for key, value in tiny.VAE.items() if key != 'scaling_factor'},
    'AutoencoderDC': dict(latent_channels=4, attention_head_dim=4, encoder_block_types='ResBlock', decoder_block_types='ResBlock',
                          encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
                          encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1), scaling_factor=0.41,
                          encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ())),
    'AutoencoderKLQwenImage': dict(base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
                                   **STATISTICS),
}
SIZES = {'AutoencoderKL': (4, 2), 'AutoencoderKLFlux2': (16, 4), 'AutoencoderDC': (4, 4), 'AutoencoderKLQwenImage': (4, 2)}
every_vae = pytest.mark.parametrize('name', OPTIONS)


def made(name):
    if not hasattr(diffusers, name):
        pytest.skip(f'diffusers {diffusers.__version__} has no {name}')
    torch.manual_seed(0)
    vae = getattr(diffusers, name)(**OPTIONS[name]).double().eval()
    if hasattr(vae, 'bn'):
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
    return vae


def encoder(name, patch_size=1):
    return LatentEncoder(made(name), patch_size=patch_size, channels=SIZES[name][0])


def by_hand(vae, images):
    """From the pipelines' source."""
    name, config = type(vae).__name__, vae.config
    if name == 'AutoencoderDC':
        return vae.encode(images).latent * 0.41
    if name == 'AutoencoderKLQwenImage':
        mode = vae.encode(images.unsqueeze(2)).latent_dist.mode()
        mean, std = (torch.tensor(value, dtype=torch.float64).view(1, 4, 1, 1, 1) for value in STATISTICS.values())
        return ((mode - mean) / std).squeeze(2)
    mode = vae.encode(images).latent_dist.mode()
    if name == 'AutoencoderKL':
        mean, std = (torch.tensor(value, dtype=torch.float64).view(1, 4, 1, 1) for value in STATISTICS.values())
        return (mode - mean) * config.scaling_factor / std
    mode = diffusers.Flux2Pipeline._patchify_latents(mode)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + config.batch_norm_eps)
    return (mode - vae.bn.running_mean.view(1, -1, 1, 1)) / std


def test_an_image_below_one_token_of_32_pixels_is_refused():
    levels = dict(encoder_block_out_channels=(8,) * 6, decoder_block_out_channels=(8,) * 6,
                  encoder_block_types='ResBlock', decoder_block_types='ResBlock', encoder_layers_per_block=(1,) * 6,
                  decoder_layers_per_block=(1,) * 6, encoder_qkv_multiscales=((),) * 6, decoder_qkv_multiscales=((),) * 6)
    large = LatentEncoder(diffusers.AutoencoderDC(**dict(OPTIONS['AutoencoderDC'], **levels)), patch_size=1, channels=4)
    with pytest.raises(ValueError, match='images of 31 x 24 pixels are below one token of 32 x 32: scale them up'):
        large(torch.zeros(1, 3, 31, 24))
    assert large(torch.zeros(1, 3, 33, 24)).shape == (1, 4, 2, 1)


@every_vae
def test_latents_are_those_of_the_pipelines(name):
    ours, images = encoder(name), tiny.images(2, 16, 24, dtype=torch.float64)
    channels, stride = SIZES[name]
    assert (ours.stride, ours.token_stride, ours.image_channels) == (stride, stride, 3)
    latent = ours(images)
    assert latent.shape == (2, channels, 16 // stride, 24 // stride)
    with torch.no_grad():
        exact = 1e-10 if name != 'AutoencoderDC' else 1e-6  # whose norms compute in float32
        torch.testing.assert_close(latent, by_hand(made(name), images), rtol=0, atol=exact)


@every_vae
def test_sizes_are_padded_and_a_batch_does_not_matter(name):
    ours, images = encoder(name, patch_size=2), tiny.images(2, 13, 22, dtype=torch.float64)
    latent = ours(images)
    assert latent.shape[-2:] == tuple(2 * side for side in ours.grid(13, 22))
    torch.testing.assert_close(ours(images[1:]), latent[1:])


@every_vae
def test_without_its_decoder_it_encodes_the_same_and_has_the_same_fingerprint(name):
    ours, images = encoder(name), tiny.images(1, 16, 16, dtype=torch.float64)
    before, own = ours(images), ours.fingerprint()
    ours.drop_decoder()
    assert not list(ours.vae.decoder.parameters())
    assert torch.equal(ours(images), before) and ours.fingerprint() == own
    with torch.no_grad():
        next(ours.vae.encoder.parameters()).add_(1e-3)
    assert ours.fingerprint() != own


@pytest.mark.parametrize('name, change', [
    ('AutoencoderKL', lambda vae: vae.register_to_config(latents_std=[1.0] * 4)),
    ('AutoencoderKL', lambda vae: vae.register_to_config(latents_mean=None)),
    ('AutoencoderKLFlux2', lambda vae: vae.bn.running_mean.add_(1)),
    ('AutoencoderDC', lambda vae: vae.register_to_config(scaling_factor=1.0)),
    ('AutoencoderKLQwenImage', lambda vae: vae.register_to_config(latents_mean=[0.0] * 4)),
])
def test_statistics_are_in_the_fingerprint(name, change):
    ours = encoder(name)
    own = ours.fingerprint()
    change(ours.vae)
    assert ours.fingerprint() != own


@every_vae
def test_saved_and_loaded(name, tmp_path):
    vae = made(name).float()
    vae.save_pretrained(tmp_path / 'vae')
    again = loading.load_vae(tmp_path, SIZES[name][0])
    assert type(again) is type(vae) and adapter(again).stride == SIZES[name][1]
    with pytest.raises(ValueError, match=f'vae/config.json: .* {name} have {SIZES[name][0]} channels and the DiT takes 7'):
        loading.load_vae(tmp_path, 7)


def test_published_sizes():
    """Channels and strides of the models that people use, from the defaults of diffusers' classes."""
    sd = dict(block_out_channels=(128, 256, 512, 512), latent_channels=16, down_block_types=('DownEncoderBlock2D',) * 4,
              up_block_types=('UpDecoderBlock2D',) * 4)
    published = {'AutoencoderKL': (sd, 16, 8), 'AutoencoderKLFlux2': ({}, 128, 16), 'AutoencoderDC': ({}, 32, 32),
                 'AutoencoderKLQwenImage': ({}, 16, 8)}
    for name, (options, channels, stride) in published.items():
        if hasattr(diffusers, name):
            with torch.device('meta'):
                found = adapter(getattr(diffusers, name)(**options))
            assert (found.channels, found.stride, found.image_channels) == (channels, stride, 3), name


def test_an_unknown_class_is_refused():
    class VQModel(nn.Module):
        pass
    with pytest.raises(ValueError, match='VQModel is not supported: the known VAEs are AutoencoderKL, '):
        adapter(VQModel())
    assert {'AutoencoderKL', 'AutoencoderKLFlux2', 'AutoencoderDC', 'AutoencoderKLQwenImage'} == Adapter.known.keys()
