"""The neck builds the levels that the heads read and no others: then DDP works as it is."""
import processes
import pytest
import torch
from heads import HEADS, config, train_as_one_of_two
from mmengine.config import Config

from mmaselect.openmm import AutoTimestepNeck, configs
from mmaselect.openmm.configs import read_levels


@pytest.mark.parametrize('name', HEADS)
def test_training_leaves_out_what_no_head_reads(name):
    cfg = Config(dict(model=config(name)))
    configs.leave_out_levels(cfg)
    assert cfg.model.neck.levels == HEADS[name][2]


def test_levels_that_are_named_are_left_and_have_to_do():
    cfg = Config(dict(model=config('FCNHead', levels=[0, 3])))
    configs.leave_out_levels(cfg)
    assert cfg.model.neck.levels == [0, 3]
    for neck in (dict(levels=[0, 1]), dict(scales=(4, 2))):
        with pytest.raises(ValueError, match=r'decode_head DMHead reads level 2 .*set in_index of the head, or levels and'):
            read_levels(config('DMHead', **neck))


@pytest.mark.parametrize('change', [
    dict(neck=[dict(type='mmaselect.AutoTimestepNeck'), dict(type='FPN')]), dict(neck=None),
    dict(decode_head=dict(type='MaskFormerHead', in_channels=[16] * 4)), dict(decode_head=None, auxiliary_head=None)])
def test_where_heads_do_not_say_all_levels_are_built(change):
    model = config('UPerHead') | change
    cfg = Config(dict(model=model))
    configs.leave_out_levels(cfg)
    assert read_levels(model) is None and not (isinstance(cfg.model.neck, dict) and 'levels' in cfg.model.neck)


def test_knets_inner_head_reads():
    assert read_levels(config('FCNHead') | dict(decode_head=dict(type='IterativeDecodeHead', num_stages=1,
                                                                 kernel_generate_head=HEADS['PSPHead'][0]))) == [3]


def test_enc_head_names_levels_and_reads_the_last_unless_it_adds_laterals():
    enc = dict(type='EncHead', in_channels=[16] * 3, in_index=(1, 2, 3), channels=8, num_codes=4)
    model = config('FCNHead') | dict(auxiliary_head=None)
    assert read_levels(model | dict(decode_head=enc)) == [3]
    assert read_levels(model | dict(decode_head=dict(enc, add_lateral=True))) == [1, 2, 3]


@pytest.mark.parametrize('num_taps', [1, 4])
def test_the_levels_keep_their_places_names_and_values(num_taps):
    options = dict(in_channels=16, num_taps=num_taps, output='pyramid', fusion='weights')
    torch.manual_seed(0)
    whole, some = AutoTimestepNeck(**options), AutoTimestepNeck(**options, levels=[-1, 0])
    maps = tuple(torch.randn(2, 16, 4, 6) for _ in range(num_taps))
    state = whole.state_dict()
    assert {name: value.shape for name, value in some.state_dict().items()}.items() <= {
        name: value.shape for name, value in state.items()}.items()
    some.load_state_dict({name: state[name] for name in some.state_dict()})
    expected, found = whole(maps), some(maps)
    assert found[1] is None and found[2] is None
    assert torch.equal(found[0], expected[0]) and torch.equal(found[3], expected[3])
    sum(level.square().sum() for level in found if level is not None).backward()
    assert all(p.grad is not None for p in some.parameters())


@pytest.mark.parametrize('options', [dict(output='map'), dict(output='pyramid'), dict(output='map', norm='layer')])
def test_maps_are_contiguous(options):
    for level in AutoTimestepNeck(16, **options)((torch.randn(2, 24, 16).transpose(1, 2).unflatten(2, (4, 6)),)):
        assert level.is_contiguous()


@pytest.mark.parametrize('levels', [[], [4], [0, 0], [0, -4]])
def test_levels_that_are_not_there_are_refused(levels):
    with pytest.raises(ValueError, match='levels=.*name different ones of the 4'):
        AutoTimestepNeck(16, output='pyramid', levels=levels)


def test_two_processes_train_every_family_of_heads(tmp_path):
    processes.two(train_as_one_of_two, str(tmp_path))
    for name in HEADS:
        first, second = (torch.load(tmp_path / f'{name}.{rank}', weights_only=True) for rank in (0, 1))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_types_that_are_classes():
    model = config('FCNHead')
    model['neck']['type'] = AutoTimestepNeck
    assert read_levels(model) == read_levels(config('FCNHead'))
