import pytest
import torch

from mmaselect.openmm import AutoTimestepNeck


def maps(count=1, channels=16, height=4, width=6):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, channels, height, width, generator=generator) for _ in range(count))


@pytest.mark.parametrize('taps', [1, 4])
def test_pyramid_has_a_level_per_scale(taps):
    levels = AutoTimestepNeck(16, num_taps=taps, output='pyramid')(maps(taps))
    assert [tuple(level.shape) for level in levels] == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]


def test_levels_come_in_the_order_of_the_scales():
    levels = AutoTimestepNeck(16, output='pyramid', scales=(0.5, 1))(maps())
    assert [level.shape[-1] for level in levels] == [3, 6]
    assert torch.equal(levels[1], maps()[0])


def test_map_is_the_taps_side_by_side():
    given = maps(3)
    joined, = AutoTimestepNeck(16, num_taps=3)(given)
    assert torch.equal(joined, torch.cat(given, 1))


def test_mean_vector():
    vector, = AutoTimestepNeck(16, num_taps=2, output='vector')(maps(2))
    torch.testing.assert_close(vector, torch.cat(maps(2), 1).mean((2, 3)))


@pytest.mark.parametrize('height, width', [(4, 6), (5, 7)])
def test_grid_vector_has_the_mean_of_each_part(height, width):
    feature, = maps(height=height, width=width)
    vector, = AutoTimestepNeck(16, output='vector', pool='grid', grid=(2, 3))((feature,))
    assert vector.shape == (2, 16 * 6)
    if (height, width) == (4, 6):  # by hand, where the parts do not overlap
        expected = torch.stack([feature[:, :, r:r + 2, c:c + 2].mean((2, 3)) for r in (0, 2) for c in (0, 2, 4)], 2)
        torch.testing.assert_close(vector, expected.flatten(1))


def test_a_map_smaller_than_the_grid_is_refused():
    with pytest.raises(ValueError, match='a map of 4x6 cells cannot be pooled to 5x5 parts: lower grid'):
        AutoTimestepNeck(16, output='vector', pool='grid', grid=5)(maps())


def test_attention_pooling_is_trained_and_sees_every_cell():
    neck = AutoTimestepNeck(16, output='vector', pool='attention', num_heads=4)
    feature = maps()[0].requires_grad_()
    vector, = neck((feature,))
    assert vector.shape == (2, 16)
    vector.square().sum().backward()
    assert (feature.grad.abs().sum(1) > 0).all()
    assert all(p.grad is not None for p in neck.parameters())


def test_attention_pooling_does_not_depend_on_the_order_of_cells():
    neck = AutoTimestepNeck(16, output='vector', pool='attention', num_heads=4).eval()
    feature, = maps()
    torch.testing.assert_close(neck((feature,))[0], neck((feature.flip(-1),))[0])


def test_layer_norm_is_over_channels():
    feature, = AutoTimestepNeck(16, norm='layer')(maps())
    torch.testing.assert_close(feature.mean(1), torch.zeros(2, 4, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(feature.var(1, unbiased=False), torch.ones(2, 4, 6), atol=1e-3, rtol=0)


def test_channel_norm_learns_statistics_and_no_weights():
    neck = AutoTimestepNeck(16, norm='channel')
    feature, = neck(tuple(5 + 3 * m for m in maps()))
    torch.testing.assert_close(feature.mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    assert not list(neck.parameters())
    assert neck.state_dict()['norms.0.running_mean'].abs().max() > 0


@pytest.mark.parametrize('given', [maps(2), maps(1, channels=8)])
def test_other_taps_than_configured_are_named(given):
    with pytest.raises(ValueError, match='set in_channels and num_taps'):
        AutoTimestepNeck(16)(given)


@pytest.mark.parametrize('options, message', [
    (dict(output='maps'), "output='maps': choose one of"),
    (dict(pool='max'), "pool='max'"),
    (dict(output='vector', pool='grid', grid=0), 'grid=0: give the number of parts'),
    (dict(output='vector', pool='grid', grid=(2, 2, 2)), 'grid=.2, 2, 2.'),
    (dict(norm='batch'), "norm='batch'"),
    (dict(output='pyramid', num_taps=2), '2 taps cannot feed a pyramid of 4 levels'),
    (dict(output='pyramid', scales=(8,)), 'scales by 4, 2, 1 or 0.5, not 8'),
    (dict(selection=dict(num_images=0)), 'num_images=0'),
    (dict(selection=dict(num_images='all')), "num_images='all': an integer, 1 or more, or 'auto'"),
    (dict(selection=dict(score_taps='all')), "score_taps='all': 'auto', a list of .block, name., or None"),
    (dict(selection=dict(choose_tap=True), num_taps=4),
     'choose_tap=True chooses one tap, and the neck is set up for 4: set num_taps=1'),
    (dict(selection=dict(score='best')), "unknown score 'best'"),
    (dict(selection=dict(score=dict(type='ridge', penalty=1))), "score 'ridge'.*penalty"),
    (dict(selection=dict(num_image=5)), "no option 'num_image': did you mean 'num_images'"),
])
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AutoTimestepNeck(16, **options)
