import copy

import pytest
import tiny
import torch

from mmaselect.extract import latent


def test_latent_is_the_scaled_mode_of_the_posterior():
    encoder = tiny.extractor(dtype=torch.float64).encoder
    image = tiny.images(dtype=torch.float64)
    torch.testing.assert_close(encoder(image), encoder.vae.encode(image).latent_dist.mode() * 0.5)
    encoder.vae.register_to_config(shift_factor=0.25)
    torch.testing.assert_close(encoder(image), (encoder.vae.encode(image).latent_dist.mode() - 0.25) * 0.5)


def test_a_pixel_model_sees_the_image_itself():
    encoder = tiny.extractor(arch=tiny.PIXEL_ARCH).encoder
    assert torch.equal(encoder(tiny.images()), tiny.images())
    assert (encoder.stride, encoder.token_stride) == (1, 2)


def test_the_vae_is_frozen_whatever_is_asked():
    encoder = tiny.extractor().encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not encoder(tiny.images().requires_grad_()).requires_grad


@pytest.mark.parametrize('images', [torch.zeros(1, 1, 16, 16), torch.zeros(1, 4, 16, 16), torch.zeros(3, 16, 16)])
def test_wrong_channels_are_refused(images):
    with pytest.raises(ValueError, match=r'images must be \(B, 3, H, W\)'):
        tiny.extractor().encoder(images)


@pytest.mark.parametrize('scale, shift', [(127.5, 127.5), (0.5, 0.5), (2.1, 0)])
def test_images_of_another_range_warn_once(scale, shift):
    encoder = tiny.extractor().encoder
    with pytest.warns(UserWarning, match=r'a DiT expects \[-1, 1\]: set mean'):
        encoder(tiny.images() * scale + shift)
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encoder(tiny.images() * scale + shift)


def test_images_in_range_do_not_warn(recwarn):
    tiny.extractor().encoder(tiny.images())
    assert not recwarn.list


def test_a_vae_of_another_width_is_refused():
    with pytest.raises(ValueError, match='latents of 8 channels and the DiT takes 4'):
        tiny.extractor(arch=dict(tiny.ARCH, vae=dict(tiny.VAE, latent_channels=8)))


def test_chunks_change_nothing(monkeypatch):
    encoder = tiny.extractor(dtype=torch.float64).encoder
    images = tiny.images(5, dtype=torch.float64)
    whole = encoder(images)
    monkeypatch.setattr(latent, 'CHUNK_PIXELS', 2 * 16 * 16)
    torch.testing.assert_close(encoder(images), whole)
    monkeypatch.undo()
    seen = []
    encoder.vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    encoder.chunk_pixels = 3 * 16 * 16
    torch.testing.assert_close(encoder(images), whole)
    assert seen == [3, 2]


@pytest.mark.parametrize('shift', [None, 0.25])
def test_the_posterior_is_that_of_the_vae(shift):
    encoder = tiny.extractor(dtype=torch.float64).encoder
    encoder.vae.register_to_config(shift_factor=shift)
    images = tiny.images(3, 16, 24, dtype=torch.float64)
    plain = copy.deepcopy(encoder.vae).to(memory_format=torch.contiguous_format)  # ours is channels_last
    mean, std = plain.quant_conv(plain.encoder(images)).chunk(2, 1)  # the second is the logarithm of the variance
    for ours, theirs in zip(encoder.posterior(images), ((mean - (shift or 0)) * 0.5, (std / 2).exp() * 0.5), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.is_contiguous()


def test_a_vae_in_bfloat16_gives_latents_in_the_dtype_of_the_images():
    exact, rough = (tiny.extractor().encoder for _ in range(2))
    rough = latent.LatentEncoder(rough.vae, patch_size=2, channels=4, dtype='bfloat16')
    found, expected = rough(tiny.images()), exact(tiny.images())
    assert rough.vae.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)
    assert not torch.equal(found, expected)


@pytest.mark.parametrize('dtype, reason', [('float16', 'overflow'), ('int8', 'one of')])
def test_other_dtypes_are_refused(dtype, reason):
    with pytest.raises(ValueError, match=f"not in '{dtype}'.*{reason}" if dtype == 'float16' else reason):
        tiny.Extractor.from_arch(tiny.ARCH, vae_dtype=dtype)


def test_the_fingerprint_tells_encoders_apart():
    encoder, other = tiny.extractor().encoder, tiny.extractor().encoder
    own = encoder.fingerprint()
    other.drop_decoder()
    assert own == other.fingerprint()
    changed = [tiny.extractor(seed=1).encoder, tiny.extractor(dtype=torch.float64).encoder,
               tiny.extractor(arch=dict(tiny.ARCH, vae=dict(tiny.VAE, scaling_factor=0.6))).encoder]
    assert len({own, *(one.fingerprint() for one in changed)}) == 4
    assert tiny.extractor(arch=tiny.PIXEL_ARCH).encoder.fingerprint() is None
