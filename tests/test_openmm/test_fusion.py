"""What the neck does with several timesteps and taps, and with channels that are discarded."""
import pytest
import torch

from mmaselect.openmm import AutoTimestepNeck, fusion
from mmaselect.openmm.norms import LayerNorm2d


def maps(count, channels=16, height=4, width=6):
    generator = torch.Generator().manual_seed(0)
    return tuple((k + 1) * torch.randn(2, channels, height, width, generator=generator) for k in range(count))


def neck(seed=0, **options):
    torch.manual_seed(seed)
    return AutoTimestepNeck(16, num_heads=4, **options).eval()


# Fusion


def test_concatenation_is_in_the_backbones_order():
    given = maps(6)
    assert torch.equal(neck(num_taps=2, selection=dict(num_timesteps=3))(given)[0], torch.cat(given, 1))


def test_mean():
    given = maps(6)
    torch.testing.assert_close(neck(num_taps=2, selection=dict(num_timesteps=3), fusion='mean')(given)[0], sum(given) / 6)


def test_weights_are_uniform_at_first_and_then_what_a_softmax_makes_of_them():
    given, model = maps(4), neck(num_taps=2, selection=dict(num_timesteps=2), fusion='weights')
    torch.testing.assert_close(model(given)[0], sum(given) / 4)
    with torch.no_grad():
        model.fusions[0].logits.copy_(torch.tensor([1., 2, 3, 4]).log())
    torch.testing.assert_close(model(given)[0], sum((k + 1) / 10 * m for k, m in enumerate(given)))


def test_attention_is_torchs_own_in_each_cell():
    torch.manual_seed(0)
    model, given = fusion.Attention(16, 3, heads=4), maps(3)
    torch.nn.init.normal_(model.query)  # far from uniform
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(16), model.key.weight, model.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(16), model.key.bias, model.value.bias]))
    theirs.out_proj.load_state_dict(model.out.state_dict())
    found = model(given)
    for y, x in torch.cartesian_prod(torch.arange(4), torch.arange(6)).tolist():
        tokens = model.norm(torch.stack([m[:, :, y, x] for m in given], 1) + model.source)  # (2, 3, D)
        expected, shares = theirs(model.query.reshape(1, 1, 16).expand(2, 1, 16), tokens, tokens)
        torch.testing.assert_close(found[:, :, y, x], expected[:, 0])
        assert shares.std() > 0.01


@pytest.mark.parametrize('kind', ['weights', 'attention'])
def test_what_is_learned_gets_a_gradient(kind):
    model = neck(num_taps=2, selection=dict(num_timesteps=2), fusion=kind, output='vector')
    model(maps(4))[0].square().sum().backward()
    assert list(model.parameters()) and all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize('kind, width', [('concat', 64), ('mean', 16), ('weights', 16), ('attention', 16)])
@pytest.mark.parametrize('pool', ['mean', 'attention'])
def test_widths_of_map_and_vector(kind, width, pool):
    options = dict(num_taps=2, selection=dict(num_timesteps=2), fusion=kind, pool=pool)
    assert neck(**options)(maps(4))[0].shape == (2, width, 4, 6)
    assert neck(output='vector', **options)(maps(4))[0].shape == (2, width)


@pytest.mark.parametrize('kind', fusion.FUSIONS)
@pytest.mark.parametrize('taps', [1, 2])
def test_each_level_of_a_pyramid_gets_its_tap_at_all_timesteps(kind, taps):
    model = neck(num_taps=taps, selection=dict(num_timesteps=3), fusion=kind, output='pyramid', scales=(1, 0.5))
    given = maps(3 * taps)
    levels = model(given)
    width = 48 if kind == 'concat' else 16
    assert [tuple(level.shape) for level in levels] == [(2, width, 4, 6), (2, width, 2, 3)]
    own = neck(selection=dict(num_timesteps=3), fusion=kind)
    own.fusions.load_state_dict(model.fusions[:1].state_dict())
    torch.testing.assert_close(levels[0], own(given[::taps])[0])
    changed = [m + 1 if k % taps == taps - 1 else m for k, m in enumerate(given)]  # the last tap
    assert torch.equal(model(changed)[0], levels[0]) == (taps == 2) and not torch.equal(model(changed)[1], levels[1])


@pytest.mark.parametrize('kind', ['concat', 'mean', 'weights'])
def test_a_single_map_is_left_as_it_is(kind):
    given = maps(1)
    torch.testing.assert_close(neck(fusion=kind)(given)[0], given[0], rtol=0, atol=0)


def test_each_map_has_a_norm_of_its_own():
    model = AutoTimestepNeck(16, selection=dict(num_timesteps=2), norm='channel')
    joined, = model(maps(2))  # the second is twice as large
    torch.testing.assert_close(joined.var((0, 2, 3), unbiased=False), torch.ones(32), atol=1e-4, rtol=0)


@pytest.mark.parametrize('given', [maps(2), maps(3)])
def test_another_number_of_maps_is_named(given):
    with pytest.raises(ValueError, match=f'gives {len(given)} maps .* 2 taps of 16 at 3 timesteps'):
        neck(num_taps=2, selection=dict(num_timesteps=3))(given)


# Channels that are discarded


@pytest.mark.parametrize('norm', [None, 'layer', 'channel'])
def test_discarded_channels_are_zero_and_count_for_nothing(norm):
    feature, = maps(1)
    massive = feature.clone()
    massive[:, [3, 11]] += 1e4
    kept = [channel for channel in range(16) if channel not in (3, 11)]
    plain, found = (AutoTimestepNeck(16, norm=norm, discard_channels=[11, 3])((m,))[0] for m in (feature, massive))
    assert torch.equal(plain, found) and found.shape == feature.shape
    assert not found[:, [3, 11]].any()
    alone, = AutoTimestepNeck(14, norm=norm)((feature[:, kept],))  # as if the DiT had no such channels
    torch.testing.assert_close(found[:, kept], alone)


def test_a_massive_channel_spoils_a_layer_norm_that_keeps_it():
    feature, = maps(1)
    feature[:, 3] = 1e4
    others = [channel for channel in range(16) if channel != 3]
    assert AutoTimestepNeck(16, norm='layer')((feature,))[0][:, others].std(1).max() < 0.01
    assert AutoTimestepNeck(16, norm='layer', discard_channels=[3])((feature,))[0][:, others].std(1).min() > 0.9


def test_a_list_per_tap_holds_at_every_timestep():
    model = neck(num_taps=2, selection=dict(num_timesteps=2), discard_channels=[[5], []])
    maps_ = model(maps(4))[0].chunk(4, 1)
    assert [[channel for channel in range(16) if not m[:, channel].any()] for m in maps_] == [[5], [], [5], []]


def test_without_discarded_channels_nothing_changes_in_the_state_dict():
    assert list(neck(norm='channel', discard_channels=[]).state_dict()) == list(neck(norm='channel').state_dict())
    assert isinstance(neck(norm='layer', num_taps=2, discard_channels=[[1], []]).norms[1], LayerNorm2d)


@pytest.mark.parametrize('options, message', [
    (dict(fusion='sum'), "fusion='sum': choose one of"),
    (dict(fusion='attention', num_heads=3), 'num_heads=3 does not divide the 16 channels'),
    (dict(selection=dict(num_timesteps=0)), 'num_timesteps=0: an integer, 1 or more'),
    (dict(selection=dict(gap=0)), 'gap=0: an integer, 1 or more'),
    (dict(discard_channels=[16]), 'name some of the channels 0 to 15, and not all'),
    (dict(discard_channels=[-1]), 'name some of the channels 0 to 15'),
    (dict(discard_channels=list(range(16))), 'and not all'),
    (dict(discard_channels=[[1], [2]]), 'one per tap, of which there are 1'),
    (dict(num_taps=2, discard_channels=[[1], 2]), 'one per tap, of which there are 2'),
])
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoTimestepNeck(16, **options)
