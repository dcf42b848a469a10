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
