"""A folded DiT is the DiT at its timesteps: the same features, with less to store and to compute."""
import copy

import pytest
import tiny
import torch
from torch.nn import functional as F

from mmaselect.extract import TAPS, fold
from mmaselect.extract.families.folded_dit import EVERYWHERE
from mmaselect.extract.fold import blank, dit_of
from mmaselect.extract.noise import seeded_noise

DEPTH = tiny.DIT['num_layers']
ARCHS = {
    'latent': tiny.ARCH, 'pixels': tiny.PIXEL_ARCH,
    'patch 4': dict(tiny.ARCH, transformer=dict(tiny.DIT, patch_size=4)),
    'no bias': dict(tiny.ARCH, transformer=dict(tiny.DIT, attention_bias=False, activation_fn='gelu')),
    'flow': dict(tiny.ARCH, scheduler=dict(type='FlowMatchEulerDiscreteScheduler', shift=3.0)),
}


def both(taps, timesteps, arch=tiny.ARCH, **options):
    """An extractor and its folded copy, in float64."""
    whole = tiny.extractor(taps, arch, dtype=torch.float64)
    return whole, copy.deepcopy(whole).fold(timesteps, **options)


def features(extractor, t, count=2, height=8, width=12):
    latent = tiny.latent(extractor, count, height, width)
    return extractor.features(latent, t, seeded_noise(latent.shape[1:], 1)[None])


def assert_same(folded, whole, t, **sizes):
    for ours, expected in zip(features(folded, t, **sizes), features(whole, t, **sizes), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


# Exactness


@pytest.mark.parametrize('name', ARCHS)
@pytest.mark.parametrize('t', [0, 37, 999])
def test_every_tap_of_every_block_is_the_same(name, t):
    whole, folded = both([(block, tap) for block in range(DEPTH) for tap in TAPS], [t], ARCHS[name])
    assert_same(folded, whole, t)
    assert folded.timesteps == (t,) and whole.timesteps is None


@pytest.mark.parametrize('block', [0, 2, DEPTH - 1])
@pytest.mark.parametrize('tap', TAPS)
def test_a_last_tap_alone_is_the_same(tap, block):
    assert_same(*reversed(both([(block, tap)], [500])), 500)


@pytest.mark.parametrize('taps', [
    [(0, 'value'), (2, 'query')], [(2, 'key'), (2, 'value')], [(1, 'hidden'), (2, 'attn'), (2, 'query')]])
def test_several_taps_are_the_same(taps):
    assert_same(*reversed(both(taps, [500])), 500)


@pytest.mark.parametrize('name', ['latent', 'no bias'])
@pytest.mark.parametrize('last', EVERYWHERE)
def test_folding_into_linear_layers_is_the_same(name, last):
    taps = [*((block, tap) for block in range(2) for tap in EVERYWHERE), (2, last)]
    whole, folded = both(taps, [500], ARCHS[name], into='linear')
    assert_same(folded, whole, 500)
    assert not [key for key in folded.family.state_dict() if 'norm' in key or 'gate' in key]


def test_in_float32_and_bfloat16_it_is_as_near_as_these_are():
    taps = [(block, 'hidden') for block in range(DEPTH)]
    whole, folded = both(taps, [500])
    expected = features(whole, 500)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        for ours, theirs in zip(features(folded.to(dtype), 500), expected, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance)


def test_under_autocast():
    whole, folded = (extractor.float() for extractor in both([(1, 'mlp'), (2, 'hidden')], [500]))
    with torch.autocast('cpu', torch.bfloat16):
        found = features(folded, 500)
    for ours, expected in zip(found, features(whole, 500), strict=True):
        torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.1)


def test_positions_stay_what_they_were():
    whole = tiny.extractor(dtype=torch.float64)
    stretched = features(whole, 500)[0]
    whole.family.pos_scale = 'extrapolate'
    folded = copy.deepcopy(whole).fold([500])
    assert_same(folded, whole, 500)
    assert (features(folded, 500)[0] - stretched).abs().max() > 1e-3


# Several timesteps


def test_several_timesteps_share_the_linear_layers():
    taps = [(0, 'modulated'), (2, 'mlp'), (3, 'hidden')]
    whole, folded = both(taps, [40, 0, 700])
    for t in (0, 40, 700, torch.tensor([700, 40]), torch.tensor([0, 0])):
        assert_same(folded, whole, t)
    single = copy.deepcopy(whole).fold([40])
    count, one = (sum(p.numel() for p in extractor.family.parameters()) for extractor in (folded, single))
    assert count - one == 2 * (4 * 6 * 16)  # two more sets of six vectors for four blocks


@pytest.mark.parametrize('t', [41, torch.tensor([40, 41])])
def test_other_timesteps_are_refused(t):
    _, folded = both([(3, 'hidden')], [40, 0])
    with pytest.raises(ValueError, match='folded at t=40, 0 and cannot run at t=41: fold it at all'):
        features(folded, t)


# What is left out


@pytest.mark.parametrize('taps, layers', [
    ('modulated', set()), ('key', {'k'}), (('query', 'value'), {'qv'}), ('attn', {'qkv', 'proj'}),
    ('mlp', {'qkv', 'proj', 'fc1', 'fc2'}), ('hidden', {'qkv', 'proj', 'fc1', 'fc2'})])
def test_only_what_the_taps_need_is_kept(taps, layers):
    taps = [taps] if isinstance(taps, str) else taps
    _, folded = both([(1, tap) for tap in taps], [40])
    state = folded.family.state_dict()
    assert {key.split('.')[2] for key in state if key.startswith('blocks.1.')} - {'modulation'} == layers
    assert all(len(state[f'blocks.1.{name}.weight']) == 16 * len(name) for name in layers if set(name) <= set('qkv'))
    assert not [key for key in state if key.startswith('blocks.2')]
    assert [key for key in state if 'blocks.1.modulation.0.gate2' in key] == (
        ['blocks.1.modulation.0.gate2'] if taps == ['hidden'] else [])
    # Everything that is left is used.
    folded.requires_grad_(True)
    assert len(folded.used_parameters()) == len(list(folded.family.parameters()))


def test_a_tap_stops_where_it_is(monkeypatch):
    """Of the last block a query computes one projection, and attn no MLP."""
    calls = []
    linear, attention = F.linear, F.scaled_dot_product_attention
    monkeypatch.setattr(F, 'linear', lambda x, weight, bias=None: calls.append(tuple(weight.shape)) or linear(x, weight, bias))
    monkeypatch.setattr(F, 'scaled_dot_product_attention', lambda *args: calls.append('attention') or attention(*args))
    block = [(48, 16), 'attention', (16, 16), (64, 16), (16, 64)]
    for tap, last in (('query', [(16, 16)]), ('modulated', []), ('attn', block[:3]), ('hidden', block)):
        _, folded = both([(1, tap)], [40])
        calls.clear()
        features(folded, 40)
        assert calls == block + last


def test_a_dit_of_the_true_size_loses_two_fifths_of_its_parameters():
    from diffusers import DiTTransformer2DModel
    with torch.device('meta'):
        model = DiTTransformer2DModel(num_attention_heads=12, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=12,
                                      sample_size=32, patch_size=2, num_embeds_ada_norm=1000, norm_type='ada_norm_zero')
    folded = blank(model.config, [0], ((11, 'hidden'),))
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, folded))
    assert 146e6 < before < 149e6 and 85e6 < after < 86e6


def test_the_source_is_left_alone_and_shares_nothing():
    whole = tiny.extractor(dtype=torch.float64)
    before = features(whole, 40)
    folded = fold(whole.family, whole.process, [40], whole.taps)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.fill_(7)
    assert torch.equal(features(whole, 40)[0], before[0])


# Taps and options that do not go


@pytest.mark.parametrize('tap, message', [
    ((3, 'hidden'), r"folded up to \['query'\] of block 2"), ((2, 'hidden'), 'folded away'), ((2, 'key'), 'folded away')])
def test_taps_that_were_folded_away_are_refused(tap, message):
    _, folded = both([(1, 'mlp'), (2, 'query')], [40])
    with pytest.raises(ValueError, match=message):
        folded.set_taps([tap])
    assert folded.taps == ((1, 'mlp'), (2, 'query'))


@pytest.mark.parametrize('tap', [(0, 'hidden'), (1, 'value'), (2, 'query'), (2, 'modulated')])
def test_taps_that_are_still_there_can_be_read(tap):
    whole, folded = both([(1, 'mlp'), (2, 'query')], [40])
    for extractor in (whole, folded):
        extractor.set_taps([tap])
    assert_same(folded, whole, 40)


@pytest.mark.parametrize('tap', ['modulated', 'attn', 'mlp'])
def test_into_linear_refuses_what_it_does_away_with(tap):
    with pytest.raises(ValueError, match=f'{tap!r} is gone .* take one of query, key, value, hidden'):
        both([(1, tap), (2, 'hidden')], [40], into='linear')


@pytest.mark.parametrize('timesteps, options, message', [
    ([], {}, r'got \[\]'), ([3, 3], {}, 'different timesteps'), ([1000], {}, r'\[0, 999\]'),
    ([1, 2], dict(into='linear'), 'one timestep alone'), ([1], dict(into='scale'), "not 'scale'")])
def test_bad_options_are_refused(timesteps, options, message):
    with pytest.raises(ValueError, match=message):
        tiny.extractor().fold(timesteps, **options)


def test_what_cannot_be_folded_says_so():
    with pytest.raises(ValueError, match='FoldedDiT cannot be folded'):
        tiny.extractor().fold([3]).fold([4])
    with pytest.raises(ValueError, match="activation_fn='geglu'"):
        tiny.extractor(arch=dict(tiny.ARCH, transformer=dict(tiny.DIT, activation_fn='geglu'))).fold([3])


# Gradients, and the way back


def test_gradients_are_those_of_the_unfolded():
    whole, folded = both([(1, 'query'), (2, 'hidden')], [500])
    for extractor in (whole, folded):
        extractor.family.requires_grad_(True)
        sum(m.square().sum() for m in features(extractor, 500)).backward()
    attention = whole.family.model.transformer_blocks[1].attn1
    expected = torch.cat([layer.weight.grad for layer in (attention.to_q, attention.to_k, attention.to_v)])
    torch.testing.assert_close(folded.family.blocks[1].qkv.weight.grad, expected, rtol=1e-10, atol=1e-10)
    assert all(p.grad is not None for p in folded.family.parameters())


def test_a_stored_dit_can_be_folded_again():
    whole, folded = both([(2, 'mlp')], [500])
    state = whole.family.state_dict()
    again = fold(dit_of(whole.family.config, state), whole.process, [500], whole.taps).state_dict()
    expected = folded.family.state_dict()
    assert again.keys() == expected.keys() and all(torch.equal(again[key], expected[key]) for key in expected)
    del state['model.pos_embed.proj.bias']
    with pytest.raises(RuntimeError, match='pos_embed.proj.bias'):
        dit_of(whole.family.config, state)
