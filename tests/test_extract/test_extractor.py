import pytest
import tiny
import torch

from mmaselect.extract import TAPS, Extractor
from mmaselect.extract.families.dit import positions
from mmaselect.extract.noise import seeded_noise

T = torch.tensor([3, 500])


def latents(extractor, height=16, width=16, dtype=torch.float64):
    latent = extractor.encoder(tiny.images(2, height, width, dtype=dtype))
    return latent, seeded_noise(latent.shape, 0).to(dtype)


def diffusers_forward(extractor, latent, t, noise):
    """diffusers' own forward pass of the same noisy latents with the null class, and what hooks saw on the way."""
    seen, model = {}, extractor.family.model

    def keep(name, pick=lambda out: out):
        return lambda module, args, out: seen.__setitem__(name, pick(out))

    handles = []
    for index, block in enumerate(model.transformer_blocks):
        for name, module in (('hidden', block), ('query', block.attn1.to_q), ('key', block.attn1.to_k),
                             ('value', block.attn1.to_v), ('attn', block.attn1), ('mlp', block.ff)):
            handles.append(module.register_forward_hook(keep((index, name))))
        handles.append(block.norm1.register_forward_hook(keep((index, 'modulated'), lambda out: out[0])))
    noisy = extractor.process.add(latent, t, noise)
    out = model(noisy, timestep=t, class_labels=torch.full_like(t, model.config.num_embeds_ada_norm)).sample
    for handle in handles:
        handle.remove()
    return out, seen


@pytest.mark.parametrize('arch', [tiny.ARCH, tiny.PIXEL_ARCH])
def test_last_block_and_output_layer_equal_diffusers(arch):
    extractor = tiny.extractor(arch=arch, dtype=torch.float64)
    latent, noise = latents(extractor)
    hidden, = extractor.features(latent, T, noise)
    reference, _ = diffusers_forward(extractor, latent, T, noise)
    ours = extractor.family.predict(extractor.process.add(latent, T, noise), T)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)
    tokens = hidden.flatten(2).transpose(1, 2)  # (B, N, D), put in place of what the last block gives
    handle = extractor.family.model.transformer_blocks[-1].register_forward_hook(lambda *_: tokens)
    through, _ = diffusers_forward(extractor, latent, T, noise)
    handle.remove()
    torch.testing.assert_close(through, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', TAPS)
def test_each_tap_equals_a_hook_on_diffusers(name):
    taps = [(block, name) for block in range(4)]
    extractor = tiny.extractor(taps, dtype=torch.float64)
    latent, noise = latents(extractor)
    maps = extractor.features(latent, T, noise)
    _, seen = diffusers_forward(extractor, latent, T, noise)
    for tap, feature in zip(taps, maps, strict=True):
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), seen[tap], rtol=0, atol=1e-10)
    assert not torch.allclose(maps[0], maps[-1])


def test_taps_come_in_the_order_asked():
    taps = [(1, 'mlp'), (1, 'query'), (-1, 'hidden')]
    extractor = tiny.extractor(taps)
    both = extractor(tiny.images(), 7)
    for tap, feature in zip(taps, both, strict=True):
        torch.testing.assert_close(tiny.extractor([tap])(tiny.images(), 7)[0], feature)


def test_early_exit_gives_the_same_tensor_and_skips_later_blocks():
    early, late = tiny.extractor([(1, 'attn')]), tiny.extractor([(1, 'attn'), (3, 'hidden')])
    ran = []
    for module in (early.family.model.transformer_blocks[1].ff, early.family.model.transformer_blocks[2].attn1.to_q):
        module.register_forward_hook(lambda *_: ran.append(1))
    assert torch.equal(early(tiny.images(), 7)[0], late(tiny.images(), 7)[0])
    assert not ran


def test_a_query_stops_before_key_and_value():
    extractor = tiny.extractor([(0, 'query')])
    attention = extractor.family.model.transformer_blocks[0].attn1
    attention.to_k = attention.to_v = None  # would raise if used
    assert extractor(tiny.images(), 0)[0].shape == (2, 16, 4, 4)


@pytest.mark.parametrize('height, width, grid', [
    (16, 16, (4, 4)), (8, 24, (2, 6)), (4, 4, (1, 1)), (17, 30, (5, 8)), (1, 9, (1, 3))])
def test_any_size(height, width, grid):
    feature, = tiny.extractor()(tiny.images(1, height, width), 7)
    assert feature.shape == (1, 16, *grid)
    assert feature.isfinite().all()


def test_padding_repeats_the_border():
    extractor = tiny.extractor()
    image = tiny.images(1, 14, 16)
    padded = torch.cat([image, image[:, :, -1:], image[:, :, -1:]], 2)
    assert torch.equal(extractor(image, 7)[0], extractor(padded, 7)[0])


def test_rows_are_rows():
    """Height and width are not swapped: a transposed image gives another map than a transposed map."""
    extractor = tiny.extractor(dtype=torch.float64)
    image = tiny.images(1, 8, 24, dtype=torch.float64)
    places = positions(16, (2, 6), 4, 'interpolate', 'cpu', torch.float64)[0].unflatten(0, (2, 6))  # half of D encodes x, half y
    embed, = extractor.family.overrides().values()
    patches = extractor.family.model.pos_embed.proj(extractor.encoder(image)).flatten(2).transpose(1, 2)  # (1, 12, D)
    torch.testing.assert_close(embed(extractor.encoder(image)) - patches, places.flatten(0, 1)[None])
    half = places.shape[-1] // 2
    assert torch.allclose(places[0, :, :half], places[1, :, :half])  # diffusers puts x first
    assert torch.allclose(places[:, 0, half:], places[:, 5, half:])
    assert not torch.allclose(places[:, 0, :half], places[:, 5, :half])


def test_seeded_noise_makes_the_answer_repeatable_and_batch_size_nothing():
    extractor = tiny.extractor(dtype=torch.float64)
    images = tiny.images(3, dtype=torch.float64)
    whole, = extractor(images, 200)
    torch.testing.assert_close(extractor(images[1:2], 200)[0], whole[1:2])
    assert torch.equal(extractor(images, 200)[0], whole)
    assert not torch.allclose(extractor(images, 200, seed=1)[0], whole)
    assert not torch.allclose(extractor(images, 200, noise='none')[0], whole)
    assert not torch.allclose(extractor(images, 200, noise='random')[0], extractor(images, 200, noise='random')[0])


def test_timesteps_of_one_batch_may_differ():
    extractor = tiny.extractor(dtype=torch.float64)
    latent, noise = latents(extractor)
    both, = extractor.features(latent, T, noise)
    for k, t in enumerate(T.tolist()):
        torch.testing.assert_close(extractor.features(latent[k:k + 1], t, noise[k:k + 1])[0], both[k:k + 1])


@pytest.mark.parametrize('t', [-1, 1000, 1.5, torch.tensor([0, 1000]), True, '50', None, [True], ['50'], torch.tensor([]).int()])
def test_timesteps_outside_the_schedule_are_refused(t):
    with pytest.raises(ValueError, match=r'integers in \[0, 999\]'):
        tiny.extractor()(tiny.images(), t)


def test_no_timesteps_or_another_number_of_them_is_refused():
    with pytest.raises(ValueError, match='no timesteps were given'):
        tiny.extractor()(tiny.images(), [])
    with pytest.raises(ValueError, match='3 timesteps for 2 latents'):
        tiny.extractor()(tiny.images(), torch.tensor([1, 2, 3]))


@pytest.mark.parametrize('images, message', [
    (torch.zeros(0, 3, 16, 16), 'at least one'), (torch.zeros(1, 3, 0, 16), 'at least one'),
    (torch.zeros(1, 3, 2, 3), 'images of 2 x 3 pixels are below one token of 4 x 4: scale them up'),
    (torch.full((1, 3, 16, 16), 200, dtype=torch.uint8), r'floating point in \[-1, 1\], and these are torch.uint8'),
    ([tiny.images()], 'must be a tensor .* not list: .*to_batch'), (None, 'not NoneType'),
    (torch.full((1, 3, 16, 16), torch.nan), 'not finite'), (torch.tensor([0., torch.inf]).expand(1, 3, 16, 2), 'not finite'),
])
def test_what_is_no_batch_of_images_is_refused(images, message):
    extractor = tiny.extractor()
    extractor(tiny.images(), 7)  # not only at the first batch
    with pytest.raises(ValueError, match=message):
        extractor(images, 7)
    assert extractor(tiny.images(), 7)[0].isfinite().all()


def test_no_latents_are_refused():
    with pytest.raises(ValueError, match='no latents'):
        tiny.extractor().from_latents(torch.zeros(0, 4, 8, 8), 7)


def test_half_of_a_model_leaves_the_vae_exact():
    """In float16 Stable Diffusion's VAEs overflow."""
    extractor = tiny.extractor()
    latent = extractor.encoder(tiny.images())
    extractor.half()
    assert extractor.family.model.dtype == torch.float16 and extractor.encoder.vae.dtype == torch.float32
    assert torch.equal(extractor.encoder(tiny.images()), latent)
    assert extractor.to(torch.bfloat16).encoder.vae.dtype == torch.bfloat16


def test_an_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="'seeded', 'random' or 'none'"):
        tiny.extractor()(tiny.images(), 0, noise='gaussian')


def test_training_mode_never_draws_labels():
    """diffusers' label embedder replaces labels at random while training; the null class must not be touched."""
    extractor = tiny.extractor(dtype=torch.float64)
    before, = extractor(tiny.images(dtype=torch.float64), 7)
    extractor.train()
    torch.testing.assert_close(extractor(tiny.images(dtype=torch.float64), 7)[0], before)


def test_used_parameters_are_those_that_get_a_gradient():
    extractor = tiny.extractor([(1, 'query')])
    names = {id(p): name for name, p in extractor.named_parameters()}
    used = {names[id(p)] for p in extractor.used_parameters()}
    assert any('blocks.1.attn1.to_q' in name for name in used)
    unused = ('blocks.2', 'blocks.1.ff', 'blocks.1.attn1.to_k', 'proj_out', 'vae')
    assert not any(part in name for name in used for part in unused)


def test_a_family_without_a_null_class_is_refused():
    extractor = tiny.extractor()
    embedder = extractor.family.model.transformer_blocks[0].norm1.emb.class_embedder
    embedder.embedding_table = torch.nn.Embedding(5, 16)
    with pytest.raises(ValueError, match='no null class'):
        extractor(tiny.images(), 0)


def test_blocks_after_the_last_tap_do_not_run():
    extractor, ran = tiny.extractor([(2, 'hidden')]), []
    for index, block in enumerate(extractor.family.model.transformer_blocks):
        block.attn1.register_forward_hook(lambda *_, index=index: ran.append(index))
    for last in (2, 0, 3):
        ran.clear()
        extractor.set_taps([(last, 'hidden')])
        extractor(tiny.images(), 0)
        assert ran == list(range(last + 1))


def test_from_pretrained_gives_back_what_was_saved(tmp_path):
    from diffusers import DDIMScheduler, DiTPipeline
    extractor = tiny.extractor([(2, 'attn')])
    DiTPipeline(extractor.family.model, extractor.encoder.vae, DDIMScheduler()).save_pretrained(tmp_path)
    again = Extractor.from_pretrained(tmp_path, [(2, 'attn')]).eval()
    assert torch.equal(extractor(tiny.images(), 7)[0], again(tiny.images(), 7)[0])
