"""The families that are conditioned on text, against diffusers. DiT, the first family, is in test_extractor.py."""
import diffusers
import pytest
import tiny
import torch

from mmaselect.extract import TAPS, Extractor, NoiseProcess, loading, null_prompt
from mmaselect.extract.families import FAMILIES, Family, family_of
from mmaselect.extract.noise import seeded_noise

ARCHS = {
    'sd3': tiny.SD3,
    'sd3, qk_norm': dict(tiny.SD3, qk_norm='rms_norm'),
    'sd3.5, dual attention': tiny.SD35,
    'pixart': tiny.PIXART,
    'pixart, told the size': dict(tiny.PIXART, use_additional_conditions=True),
    'pixart, no projection': dict(tiny.PIXART, caption_channels=None, interpolation_scale=2),
}
every_arch = pytest.mark.parametrize('name', ARCHS)
T = torch.tensor([3, 500])


def extractor(name, taps=((-1, 'hidden'),), dtype=torch.float64):
    """With norms, biases and tables that are not the constants of their initialisation, and a prompt that is padded."""
    transformer = ARCHS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = loading.from_arch(dict(transformer=transformer, vae=tiny.VAE, scheduler=tiny.FLOW))
        for parameter in parts.transformer.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
        parts.null = {key: torch.randn(shape) for key, shape in
                      FAMILIES[transformer['type']].null_shapes(parts.transformer.config, 5).items()}
    if 'prompt_attention_mask' in parts.null:
        parts.null['prompt_attention_mask'] = torch.tensor([[1, 1, 1, 0, 0]])
    made = Extractor(parts, taps).to(dtype).eval()
    made.null = {key: value.to(dtype) for key, value in parts.null.items()}
    return made


def latents(made, height=16, width=16):
    latent = made.encoder(tiny.images(2, height, width, dtype=torch.float64))
    return latent, seeded_noise(latent.shape, 0).double()


def diffusers_forward(made, latent, noise):
    """diffusers' own forward pass with the null prompt, and what hooks saw on the way."""
    seen, model, null = {}, made.family.model, {key: value.expand(2, *value.shape[1:]) for key, value in made.null.items()}
    sd3 = type(model).__name__.startswith('SD3')
    handles = []

    def keep(key, module, pick=lambda out: out):
        handles.append(module.register_forward_hook(lambda module, args, out: seen.__setitem__(key, pick(out))))

    for index, block in enumerate(model.transformer_blocks):
        attention = block.attn if sd3 else block.attn1
        for name, module in (('query', attention.to_q), ('key', attention.to_k), ('value', attention.to_v), ('mlp', block.ff)):
            keep((index, name), module)
        keep((index, 'hidden'), block, (lambda out: out[1]) if sd3 else (lambda out: out))
        keep((index, 'attn'), attention, (lambda out: out[0]) if sd3 else (lambda out: out))
        handles.append(attention.to_q.register_forward_pre_hook(
            lambda module, args, key=(index, 'modulated'): seen.__setitem__(key, args[0])))
    noisy, time = made.process.add(latent, T, noise), made.process.model_time[T].float()
    if sd3:
        out = model(noisy, null['prompt_embeds'], null['pooled_prompt_embeds'], time)
    else:
        size = torch.full((2, 2), 64.), torch.ones(2, 1)  # 8 latent pixels are 64 pixels to PixArt
        out = model(noisy, null['prompt_embeds'], time, dict(zip(('resolution', 'aspect_ratio'), size, strict=True)),
                    encoder_attention_mask=null['prompt_attention_mask'])
    for handle in handles:
        handle.remove()
    return out.sample, seen


@every_arch
def test_all_taps_and_the_output_equal_diffusers(name):
    taps = [(block, tap) for block in range(4) for tap in TAPS]
    made = extractor(name, taps)
    latent, noise = latents(made)
    maps = made.features(latent, T, noise)
    reference, seen = diffusers_forward(made, latent, noise)
    assert seen.keys() == set(taps)
    for tap, feature in zip(taps, maps, strict=True):
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), seen[tap], rtol=0, atol=1e-10)
    ours = made.family.predict(made.process.add(latent, T, noise), made.process.model_time[T])
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', ['sd3.5, dual attention', 'pixart'])
def test_a_wide_input_equals_diffusers(name):
    """Height and width are not swapped; PixArt's size, which would differ, is not told here."""
    made = extractor(name)
    latent, noise = latents(made, 12, 24)
    hidden, = made.features(latent, T, noise)
    assert hidden.shape[-2:] == (3, 6)
    _, seen = diffusers_forward(made, latent, noise)
    torch.testing.assert_close(hidden.flatten(2).transpose(1, 2), seen[3, 'hidden'], rtol=0, atol=1e-10)


@every_arch
@pytest.mark.parametrize('tap', ['modulated', 'attn', 'hidden'])
def test_early_exit_gives_the_same_tensor(name, tap):
    early, late = extractor(name, [(1, tap)]), extractor(name, [(1, tap), (3, 'hidden')])
    images = tiny.images(dtype=torch.float64)
    assert torch.equal(early(images, 7)[0], late(images, 7)[0])


@every_arch
def test_a_query_stops_before_all_else(name):
    made = extractor(name, [(2, 'query')])
    expected, = made(tiny.images(dtype=torch.float64), 7)
    block = made.family.model.transformer_blocks[2]
    attention = getattr(block, 'attn', None) or block.attn1
    made.family.model.transformer_blocks[3] = None  # would raise if used
    attention.to_k = attention.to_v = attention.to_out = attention.add_q_proj = attention.norm_q = block.attn2 = block.ff = None
    assert torch.equal(made(tiny.images(dtype=torch.float64), 7)[0], expected)


@every_arch
def test_what_a_prompt_says_reaches_the_features(name):
    made = extractor(name)
    before, = made(tiny.images(dtype=torch.float64), 7)
    made.family.null_prompt_embeds.neg_()
    assert not torch.allclose(made(tiny.images(dtype=torch.float64), 7)[0], before)


@every_arch
def test_a_batch_changes_nothing(name):
    made = extractor(name)
    latent, noise = latents(made)
    both, = made.features(latent, T, noise)
    for k, t in enumerate(T.tolist()):
        torch.testing.assert_close(made.features(latent[k:k + 1], t, noise[k:k + 1])[0], both[k:k + 1])


@every_arch
def test_half_precision_runs(name):
    made = extractor(name, dtype=torch.bfloat16)
    feature, = made(tiny.images(dtype=torch.bfloat16), 7)
    assert feature.dtype == torch.bfloat16 and feature.isfinite().all()


def test_used_parameters_follow_the_taps():
    made = extractor('sd3.5, dual attention', [(1, 'query')])
    names = {id(p): name for name, p in made.named_parameters()}
    used = {names[id(p)] for p in made.used_parameters()}
    assert {'family.model.transformer_blocks.1.attn.to_q.weight', 'family.model.transformer_blocks.0.attn2.to_q.weight',
            'family.model.transformer_blocks.0.attn.add_k_proj.weight', 'family.model.context_embedder.weight'} <= used
    unused = ('blocks.2', 'blocks.1.ff', 'blocks.1.attn.to_k', 'blocks.1.norm1_context', 'proj_out', 'vae')
    assert not any(part in name for name in used for part in unused)


def test_the_null_prompt_is_in_the_checkpoint_and_not_trained():
    made = extractor('sd3')
    assert {'family.null_prompt_embeds', 'family.null_pooled_prompt_embeds'} < made.state_dict().keys()
    assert not any('null' in name for name, _ in made.named_parameters())


def test_sd3_positions_are_cut_from_the_middle_of_its_table():
    made = extractor('sd3')
    seen = []
    made.family.model.pos_embed.register_forward_hook(lambda module, args, output: seen.append(output))
    made.features(torch.zeros(1, 4, 4, 20, dtype=torch.float64), 7, None)
    places = (seen[0] - made.family.model.pos_embed.proj.bias)[0].unflatten(0, (2, 10))
    table = made.family.model.pos_embed.pos_embed[0].unflatten(0, (12, 12))
    torch.testing.assert_close(places, table[5:7, 1:11])


def test_sd3_is_noised_and_told_the_time_as_in_its_pipeline(monkeypatch):
    """The scheduler's shifted noise level, a thousand times that as the time, the VAE's shift and scale."""
    made = extractor('sd3', dtype=torch.float32)
    made.encoder.vae.register_to_config(shift_factor=0.0609)
    pipeline = diffusers.StableDiffusion3Img2ImgPipeline(
        made.family.model, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), made.encoder.vae, *[None] * 6)
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    made.family.model.register_forward_pre_hook(lambda module, args, given: seen.append(given), with_kwargs=True)
    posterior = type(made.encoder.vae.encode(tiny.images(1)).latent_dist)
    monkeypatch.setattr(posterior, 'sample', lambda self, generator=None: self.mode())
    pipeline(image=tiny.images(1) / 2 + 0.5, height=16, width=16, strength=0.6, num_inference_steps=5, guidance_scale=0,
             prompt_embeds=made.null['prompt_embeds'], pooled_prompt_embeds=made.null['pooled_prompt_embeds'],
             generator=torch.Generator().manual_seed(1), output_type='latent')
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    time = seen[0]['timestep'].double()
    torch.testing.assert_close(made.process.model_time, 1000 * made.process.sigma)
    assert time.item() == pytest.approx(1000 * 3 * 0.5 / (1 + 2 * 0.5), rel=2e-3)  # third of five steps, the last at 0.003
    here = NoiseProcess(1 - time / 1000, time / 1000, time)
    torch.testing.assert_close(here.add(made.encoder(tiny.images(1)), torch.tensor([0]), noise), seen[0]['hidden_states'])


def test_a_grid_larger_than_sd3s_table_is_refused():
    made = extractor('sd3')
    with pytest.raises(ValueError, match="4 x 13 tokens are more than the 12 x 12 positions.*mode='slide'"):
        made(tiny.images(1, 16, 52, dtype=torch.float64), 7)


def test_a_text_model_without_its_null_prompt_is_refused():
    with pytest.raises(ValueError, match='needs its null prompt: pooled_prompt_embeds, prompt_embeds are missing'):
        family_of(extractor('sd3').family.model)


def test_a_family_is_one_class_that_registers_itself():
    class Mine(Family, wraps='MyTransformer2DModel'):
        pass
    try:
        assert FAMILIES['MyTransformer2DModel'] is Mine
    finally:
        del FAMILIES['MyTransformer2DModel']


# The published sizes, as in the transformer/config.json of each, at diffusers' key names; nothing is in memory.
SD3_MEDIUM = dict(sample_size=128, patch_size=2, in_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
                  joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16,
                  pos_embed_max_size=192)
REAL = {
    'SD3-medium': ('SD3Transformer2DModel', SD3_MEDIUM, 24, 1536, {
        'pos_embed.pos_embed': (1, 192 * 192, 1536), 'context_embedder.weight': (1536, 4096),
        'transformer_blocks.0.norm1.linear.weight': (6 * 1536, 1536),
        'transformer_blocks.23.norm1_context.linear.weight': (2 * 1536, 1536),
        'transformer_blocks.9.attn.to_q.weight': (1536, 1536)}),
    'SD3.5-medium': ('SD3Transformer2DModel', dict(SD3_MEDIUM, pos_embed_max_size=384, qk_norm='rms_norm',
                                                   dual_attention_layers=tuple(range(13))), 24, 1536, {
        'pos_embed.pos_embed': (1, 384 * 384, 1536), 'transformer_blocks.12.norm1.linear.weight': (9 * 1536, 1536),
        'transformer_blocks.12.attn2.norm_q.weight': (64,), 'transformer_blocks.13.attn.norm_added_k.weight': (64,)}),
    'SD3.5-large': ('SD3Transformer2DModel', dict(SD3_MEDIUM, num_layers=38, num_attention_heads=38, qk_norm='rms_norm',
                                                  caption_projection_dim=2432), 38, 2432, {
        'pos_embed.pos_embed': (1, 192 * 192, 2432), 'transformer_blocks.37.ff.net.0.proj.weight': (4 * 2432, 2432)}),
    'PixArt-XL-2-1024-MS': ('PixArtTransformer2DModel', dict(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, cross_attention_dim=1152,
        sample_size=128, patch_size=2, caption_channels=4096), 28, 1152, {
        'adaln_single.linear.weight': (6 * 1152, 1152), 'transformer_blocks.27.scale_shift_table': (6, 1152),
        'adaln_single.emb.resolution_embedder.linear_2.weight': (384, 384),
        'caption_projection.linear_1.weight': (1152, 4096), 'transformer_blocks.0.attn2.to_k.weight': (1152, 1152)}),
}


@pytest.mark.parametrize('name', REAL)
def test_real_architectures(name):
    kind, config, depth, width, keys = REAL[name]
    with torch.device('meta'):
        transformer = getattr(diffusers, kind)(**config)
    shapes = {key: tuple(value.shape) for key, value in transformer.state_dict().items()}
    assert keys.items() <= shapes.items()
    family = family_of(transformer, null_prompt.seeded(transformer))
    assert (family.depth, family.width, family.patch_size, family.in_channels) == (depth, width, 2, config['in_channels'])
    # 512 x 1024 pixels, to all taps of the first block and the last.
    taps = [(index, tap) for index in (0, depth - 1) for tap in TAPS]
    family.check(taps)
    noisy, time = torch.empty(2, family.in_channels, 64, 128, device='meta'), torch.zeros(2, device='meta')
    assert [tuple(value.shape) for value in family.read(noisy, time, taps)] == [(2, 32 * 64, width)] * len(taps)
    assert family.predict(noisy, time).shape[-2:] == (64, 128)
