"""Families of text-to-image transformers: features are those that diffusers' own pipelines pass through at the same noise."""
import by_hand
import diffusers
import pytest
import tiny
import torch
from packaging.version import Version

from mmaselect.extract import TAPS, Extractor, loading
from mmaselect.extract.families import FAMILIES
from mmaselect.selection import SelectionPolicy, TensorImages, sweep
from mmaselect.selection.policy import upper_taps

ARCHS = dict(tiny.TEXT_TO_IMAGE)
ARCHS['flux schnell'] = dict(ARCHS['flux'], guidance_embeds=False)
# The stock stack's diffusers and PyTorch have some.
HERE = [name for name, arch in ARCHS.items() if hasattr(diffusers, arch['type'])
        and Version(torch.__version__) >= Version(FAMILIES[arch['type']].needs)]
TOKENS = 5  # of the prompt


def arch(name):
    vae = tiny.FLUX2_VAE if ARCHS[name]['type'].startswith('Flux2') else tiny.VAE
    return dict(transformer=ARCHS[name], vae=vae, scheduler=tiny.FLOW)


def build(name, taps=((-1, 'hidden'),), dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = loading.from_arch(arch(name))
        for parameter in parts.transformer.parameters():  # gates and norms off their constants
            parameter.data += 0.1 * torch.randn_like(parameter)
        shapes = FAMILIES[ARCHS[name]['type']].null_shapes(parts.transformer.config, TOKENS)
        parts.null = {key: torch.randn(shape) for key, shape in shapes.items()}
    return Extractor(parts, taps).to(dtype).eval()


def listen(family):
    """What hooks see at every tap of every block, on whatever run comes: {(block, tap): Tensor}."""
    seen = {}

    def keep(key, module, pick=lambda out: out):
        module.register_forward_hook(lambda module, args, out: seen.__setitem__(key, pick(out)))

    for index, (block, kind) in enumerate(family.places()):
        keep((index, 'hidden'), block, lambda out: out[1] if isinstance(out, tuple) else out)
        for tap, where in kind.taps.items():
            path, part = (where, 0) if isinstance(where, str) else where
            module, width = block.get_submodule(path), None if isinstance(where, str) else family.width
            if tap == 'modulated':
                module.register_forward_pre_hook(lambda module, args, kwargs, key=(index, tap): seen.__setitem__(
                    key, args[0] if args else next(iter(kwargs.values()))), with_kwargs=True)
            else:
                keep((index, tap), module,
                     lambda out, p=part, w=width: out if w is None else out[..., p * w:(p + 1) * w])
    return seen


def of_image(family, key, tokens, count):
    """The image's tokens of what a hook saw, by what the model's paper says of the order."""
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    first = type(family).__name__ == 'ZImage'  # all others have the text first
    return tokens[:, :count] if first else tokens[:, -count:]


def run_pipeline(name, made, noisy, t):
    """One step of diffusers' own pipeline from these noisy latents (B, C, H, W) at training timestep t."""
    model, null = made.family.model, {key: getattr(made.family, f'null_{key}') for key in
                                      type(made.family).null_shapes(made.family.config, TOKENS)}
    embeds = null['prompt_embeds'].expand(len(noisy), -1, -1)
    padded = torch.cat([embeds, torch.ones_like(embeds[:, :2])], 1)
    mask = torch.ones(padded.shape[:2], dtype=torch.long)
    mask[:, TOKENS:] = 0
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=tiny.FLOW['shift'])
    parts = dict(scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=model)
    sides = dict(zip(('height', 'width'), noisy.shape[-2:], strict=True))
    step = dict(num_inference_steps=1, sigmas=[(t + 1) / 1000], output_type='latent')
    kind = ARCHS[name]['type']
    if kind == 'FluxTransformer2DModel':
        pipeline = diffusers.FluxPipeline(**parts, text_encoder_2=None, tokenizer_2=None)
        latents = pipeline._pack_latents(noisy, *noisy.shape)
        given = dict(prompt_embeds=embeds, pooled_prompt_embeds=null['pooled_prompt_embeds'].expand(len(noisy), -1))
    elif kind == 'Flux2Transformer2DModel':
        which = diffusers.Flux2Pipeline if model.config.guidance_embeds else diffusers.Flux2KleinPipeline
        pipeline, latents, given = which(**parts), noisy, dict(prompt_embeds=embeds)
        if which is diffusers.Flux2KleinPipeline:
            given['guidance_scale'] = 1.0
            pipeline = which(**dict(parts, vae=made.encoder.vae))  # undoes the normalisation whatever it is asked for
        sides = {side: 2 * value for side, value in sides.items()}
    elif kind == 'Lumina2Transformer2DModel':
        pipeline, latents = diffusers.Lumina2Pipeline(**parts), noisy
        given = dict(prompt_embeds=padded, prompt_attention_mask=mask, guidance_scale=1.0)
    elif kind == 'ZImageTransformer2DModel':
        pipeline, latents = diffusers.ZImagePipeline(**parts), noisy
        given = dict(prompt_embeds=list(embeds), guidance_scale=0.0)
    elif kind == 'SanaTransformer2DModel':
        pipeline, latents = diffusers.SanaPipeline(**parts), noisy
        given = dict(prompt_embeds=padded, prompt_attention_mask=mask, guidance_scale=1.0, use_resolution_binning=False)
    elif kind == 'QwenImageTransformer2DModel':
        pipeline = diffusers.QwenImagePipeline(**parts)
        latents = pipeline._pack_latents(noisy, *noisy.shape)
        given = dict(prompt_embeds=padded, prompt_embeds_mask=mask)
    else:
        pipeline = diffusers.PRXPipeline(**parts)
        latents, given = noisy, dict(prompt_embeds=padded, prompt_attention_mask=mask.bool(), guidance_scale=1.0,
                               use_resolution_binning=False)
        step.pop('sigmas')
        step['timesteps'] = [float(made.process.model_time[t])]
    pipeline.set_progress_bar_config(disable=True)
    scale = pipeline.vae_scale_factor
    pipeline(latents=latents, **{side: value * scale for side, value in sides.items()}, **step, **given)


@pytest.mark.parametrize('name', HERE)
def test_features_are_the_pipelines(name):
    """Every tap of every block, of non-square images, at the same noise level."""
    made = build(name)
    family, t = made.family, 350
    latent = tiny.latent(made, height=4, width=6)
    noise = tiny.latent(made, height=4, width=6, seed=1)
    taps = [(index, tap) for index, (_, kind) in enumerate(family.places()) for tap in TAPS if tap in ('hidden', *kind.taps)]
    made.set_taps(taps)
    maps = made.features(latent, t, noise)
    sigma = (t + 1) / 1000
    sigma = 3 * sigma / (1 + 2 * sigma)
    seen = listen(family)
    run_pipeline(name, made, (1 - sigma) * latent + sigma * noise, t)
    grid = tuple(side // family.patch_size for side in (4, 6))
    assert len(seen) == len(taps)
    for tap, one in zip(taps, maps, strict=True):
        assert one.shape[-2:] == grid
        expected = of_image(family, tap, seen[tap], grid[0] * grid[1])
        torch.testing.assert_close(one.flatten(2).transpose(1, 2), expected, rtol=1e-5, atol=1e-5, msg=str(tap))


@pytest.mark.parametrize('name', HERE)
def test_the_last_block_leads_to_the_output(name):
    """What is read of the last block is what the model's own output layers get, to 1e-10."""
    made = build(name)
    family, noisy, time = made.family, tiny.latent(made, height=8, width=12), torch.tensor([400.])
    seen = listen(family)
    whole = family.predict(noisy, time)
    assert whole.shape == noisy.shape
    last = (family.depth - 1, 'hidden')
    expected = of_image(family, last, seen[last], noisy[0, 0].numel() // family.patch_size ** 2)
    torch.testing.assert_close(family.read(noisy, time, [last])[0], expected, rtol=0, atol=1e-10)
    alone = family.predict(noisy[:1], time)
    torch.testing.assert_close(whole[:1], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize('name', HERE)
def test_it_is_saved_loaded_and_swept(name, tmp_path):
    from mmaselect.extract import null_prompt
    made = build(name, [(1, 'value'), (-1, 'hidden')], torch.float32)
    made.family.model.save_pretrained(tmp_path / 'transformer')
    made.encoder.vae.save_pretrained(tmp_path / 'vae')
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / 'scheduler')
    with pytest.raises(FileNotFoundError, match='encode_null_prompt'):
        Extractor.from_pretrained(tmp_path)
    names = type(made.family).null_shapes(made.family.config, TOKENS)
    null_prompt.save(tmp_path / null_prompt.FILE, {key: getattr(made.family, f'null_{key}') for key in names},
                     made.family.model)
    other = {key: getattr(made.family, f'null_{key}')[..., 1:] for key in names}
    null_prompt.save(tmp_path / 'other' / null_prompt.FILE, other, made.family.model)
    with pytest.raises(ValueError, match=r'is of another model: it has .*\(1, 5, 11\).*takes .*\(1, 5, 12\)'):
        null_prompt.load(tmp_path / 'other', made.family.model, tmp_path)
    loaded = Extractor.from_pretrained(tmp_path, [(1, 'value'), (-1, 'hidden')]).eval()
    images = tiny.images(6, 16, 24)
    for one, other in zip(made(images, 300), loaded(images, 300), strict=True):
        assert torch.equal(one, other)
    result = sweep(loaded, TensorImages(images), SelectionPolicy(score='hfr', candidates=(100, 500), controls=()))
    assert result.timestep == by_hand.choice(result) and [c.timestep for c in result.candidates] == [100, 500]


@pytest.mark.parametrize('name', ['lumina2', 'z_image'])
def test_more_tokens_than_positions_are_refused(name):
    if name not in HERE:
        pytest.skip('this diffusers has no such model')
    made = build(name)
    with pytest.raises(ValueError, match='18 x 2 tokens are more than the 16 x 16 positions'):
        made.features(tiny.latent(made, height=36, width=4), 300, None)


def test_models_of_another_kind_are_refused_by_name():
    with pytest.raises(ValueError, match='SANA-Sprint'):
        Extractor.from_arch(dict(arch('sana'), transformer=dict(ARCHS['sana'], guidance_embeds=True)))
    if 'qwen_image' in HERE and 'use_additional_t_cond' in diffusers.QwenImageTransformer2DModel.__init__.__annotations__:
        with pytest.raises(ValueError, match='Layered'):
            Extractor.from_arch(dict(arch('qwen_image'), transformer=dict(ARCHS['qwen_image'], use_additional_t_cond=True)))


def test_an_older_pytorch_is_named(monkeypatch):
    monkeypatch.setattr(FAMILIES['FluxTransformer2DModel'], 'needs', '99.0')
    with pytest.raises(ValueError, match="FluxTransformer2DModel needs PyTorch 99.0 or newer, and this is"):
        build('flux')


@pytest.mark.skipif('flux' not in HERE, reason='it cannot be built here')
def test_the_tap_is_chosen_among_blocks_that_papers_found_best():
    """Of FLUX.1 as it was published, on the meta device: single-stream blocks have no 'attn' and no 'mlp'."""
    with torch.device('meta'):
        family = FAMILIES['FluxTransformer2DModel'](diffusers.FluxTransformer2DModel(guidance_embeds=True))
    assert (family.depth, family.width, family.patch_size, family.in_channels) == (57, 3072, 2, 16)
    taps = upper_taps(family, tuple(TAPS))
    assert {block for block, _ in taps} == {16, 22, 24, 28, 31, 39, 48}
    family.check(taps)
    assert (16, 'attn') in taps and (28, 'attn') not in taps and (28, 'query') in taps
    assert upper_taps(family, ('value',)) == ((22, 'value'), (31, 'value'), (39, 'value'), (48, 'value'))
