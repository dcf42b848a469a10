"""A swap of the backbone, on configs that the toolboxes bring: one per kind of head, and what is refused."""
import copy
import functools
import sys

import pytest
import runs
import tiny
import torch
from marks import quick
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmaselect.extract.sizes import sizes
from mmaselect.openmm import swap
from mmaselect.openmm.published import PUBLISHED
from mmaselect.openmm.swap import SwapError, explain, inherit
from mmaselect.openmm.swap.base import spread
from mmaselect.openmm.swap.outline import importable

sys.path.insert(0, str(runs.ROOT / 'benchmarks'))
import zoo  # noqa: E402

ARCH = zoo.ARCH  # five blocks of 16 channels, 16 pixels per token
PSP = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
RESNET = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'


@functools.cache
def original(name):
    return Config.fromfile(inherit.find(name))


def stock(name, **changes):
    """A fresh copy of a config of the toolboxes, with some settings changed."""
    cfg = copy.deepcopy(original(name))
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def swapped(cfg, **options):
    return swap(cfg, backbone=dict(arch=ARCH, timestep=50), **options)


# Every kind of head, alone or with auxiliary heads of several kinds, and every neck.
KINDS = [
    'mmseg::ann/ann_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::apcnet/apcnet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py',
    'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
    'mmseg::cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py',
    'mmseg::danet/danet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::dmnet/dmnet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::dnlnet/dnl_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::encnet/encnet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
    'mmseg::gcnet/gcnet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832.py',
    'mmseg::isanet/isanet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
    'mmseg::mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
    'mmseg::mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py',
    'mmseg::nonlocal_net/nonlocal_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::ocrnet/ocrnet_hr18s_4xb2-80k_cityscapes-512x1024.py',
    PSP,
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
    'mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py',
    'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
    'mmseg::setr/setr_vit-l_mla_8xb1-80k_cityscapes-768x768.py',
    'mmseg::setr/setr_vit-l_pup_8xb1-80k_cityscapes-768x768.py',
    'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
    'mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py',
    'mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py',
    RESNET,
    'mmpretrain::conformer/conformer-tiny-p16_8xb128_in1k.py',
    'mmpretrain::csra/resnet101-csra_1xb16_voc07-448px.py',
    'mmpretrain::deit/deit-tiny-distilled_4xb256_in1k.py',
    'mmpretrain::efficientformer/efficientformer-l1_8xb128_in1k.py',
    'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py',
    'mmpretrain::lenet/lenet5_mnist.py',
    'mmpretrain::levit/levit-128s_8xb256_in1k.py',
    'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py',
    'mmpretrain::mobilenet_v3/mobilenet-v3-small_8xb128_in1k.py',
    'mmpretrain::resnet/resnet50_8xb16-mixup_cifar10.py',
    'mmpretrain::vgg/vgg16_8xb16_voc.py',
    'mmpretrain::vig/vig-tiny_8xb128_in1k.py',
    'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py']


# By make test: several auxiliary heads, levels that a head takes apart, necks, a refining head, a transformer's head, one that
# belonged to its backbone, several labels per image.
QUICK = ('bisenetv1', 'deeplabv3plus', 'fastfcn', 'icnet', 'knet', 'mae-base', 'segformer', 'segmenter', 'fpn_r50',
         'setr_vit-l_mla', 'pspnet', 'resnet18', 'resnet101-csra', 'deit-tiny', 'lenet5', 'levit', 'vig-tiny')


@pytest.mark.parametrize('name', quick(KINDS, lambda name: name.rpartition('/')[2].startswith(QUICK)),
                         ids=lambda name: name.rpartition('/')[2].removesuffix('.py'))
def test_trains_and_predicts(name):
    torch.manual_seed(0)
    before = copy.deepcopy(original(name).to_dict())
    new = swapped(original(name))
    assert original(name).to_dict() == before  # it is not changed
    assert new.model.backbone.type == 'mmaselect.DiTBackbone'
    zoo.step(new)


def test_levels_keep_their_strides():
    found = explain(stock(PSP), backbone=dict(arch=ARCH, timestep=50))
    assert [(reader.place, reader.head, reader.maps) for reader in found.readers] == [
        ('decode_head', 'PSPHead', [(16, 8, (4, 'hidden'))]), ('auxiliary_head', 'FCNHead', [(16, 8, (2, 'hidden'))])]
    assert found.cfg.model.neck.scales == [2, 2]
    unet = explain(stock('mmseg::unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py'), backbone=dict(arch=ARCH, timestep=50))
    assert [reader.maps[0][1] for reader in unet.readers] == [4, 4]
    assert any('4 in place of 1' in remark for remark in unet.remarks)


def test_the_first_map_that_a_head_takes_apart_is_built():
    model = swapped(stock('mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py')).model
    assert model.neck.scales == [4, 2, 2] and model.decode_head.in_index == 2 and model.auxiliary_head.in_index == 1


def test_a_stock_neck_stays_behind_ours():
    model = swapped(stock('mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py')).model
    assert [neck.type for neck in model.neck] == ['mmaselect.AutoTimestepNeck', 'FPN']
    assert model.neck[1].in_channels == [16] * 4 and model.decode_head.in_channels == [256] * 4


def test_taps():
    assert spread(28, 4) == ((8, 'hidden'), (12, 'hidden'), (16, 'hidden'), (20, 'hidden'))
    assert spread(28, 1) == ((14, 'hidden'),)
    assert spread(2, 4) == ((1, 'hidden'),)  # too few blocks: one feeds all
    one = swapped(stock(PSP), taps=[(-2, 'query')]).model
    assert one.backbone.taps == [(3, 'query')] and one.neck.num_taps == 1
    with pytest.raises(SwapError, match='3 taps cannot feed the 2 levels that are read by decode_head PSPHead'):
        swapped(stock(PSP), taps=[(0, 'hidden'), (1, 'hidden'), (2, 'hidden')])
    with pytest.raises(ValueError, match='block 5 is out of range'):
        swapped(stock(PSP), taps=[(5, 'hidden')])


def test_several_timesteps_widen_what_heads_read():
    cfg = swap(stock(PSP), backbone=dict(arch=ARCH, timestep=[50, 300]), neck=dict(selection=dict(num_timesteps=2)))
    assert cfg.model.decode_head.in_channels == 32
    zoo.step(cfg)


def test_images_reach_the_vae_as_it_expects():
    assert swapped(stock(PSP)).model.data_preprocessor.mean == [127.5] * 3
    top = swapped(stock(RESNET))
    assert top.data_preprocessor.std == [127.5] * 3 and top.data_preprocessor.num_classes == 1000
    assert 'data_preprocessor' not in top.model  # the Runner puts that of the top in
    repmlp = swapped(stock(RESNET, data_preprocessor__to_rgb=False))
    assert repmlp.data_preprocessor.to_rgb  # files are read as BGR
    assert not swapped(stock('mmpretrain::resnet/resnet50_8xb16-mixup_cifar10.py')).data_preprocessor.to_rgb  # arrays are RGB


def test_initialisation_does_not_reach_into_the_dit():
    """94 classifiers have an init_cfg for the whole model, which would replace the pretrained weights."""
    cfg = stock('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py')
    assert cfg.model.init_cfg
    new = swapped(cfg)
    init_default_scope('mmpretrain')
    model = MODELS.build(zoo.prepared(new, (64, 64)))
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert new.model.head.init_cfg == [cfg.model.init_cfg]


def test_weights_of_the_old_model_are_left_out():
    found = explain(stock(PSP, load_from='https://example.org/pspnet.pth'), backbone=dict(arch=ARCH))
    assert found.cfg.load_from is None and found.cfg.model.pretrained is None
    assert any('https://example.org/pspnet.pth' in remark for remark in found.remarks)


def test_learning_rates():
    """A decay by layers becomes ours, and what names parts of the old backbone goes."""
    beit = swapped(stock('mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py')).optim_wrapper
    assert beit.constructor == 'mmaselect.LayerDecayOptimWrapperConstructor'
    assert beit.paramwise_cfg == dict(layer_decay_rate=0.9)
    segformer = swapped(stock('mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'))
    assert set(segformer.optim_wrapper.paramwise_cfg.custom_keys) == {'head'}  # pos_block is gone, and no norm has weights
    assert swapped(stock(RESNET)).optim_wrapper == original(RESNET).optim_wrapper


def test_hooks_and_imports_are_kept():
    ema = stock('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py')
    new = swapped(ema)
    assert [hook.type for hook in new.custom_hooks] == ['EMAHook', 'mmaselect.AutoTimestepHook']
    convnext = swapped(stock('mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'))
    assert convnext.custom_imports.imports == ['mmpretrain.models', 'mmaselect']


def test_a_classification_head_that_belongs_to_its_backbone():
    head = swapped(stock('mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py')).model.head
    assert head.type == 'LinearClsHead' and head.num_classes == 1000 and head.loss.type == 'LabelSmoothLoss'
    voc = swapped(stock('mmpretrain::vgg/vgg16_8xb16_voc.py')).model.head
    assert voc.type == 'MultiLabelLinearClsHead' and voc.num_classes == 20 and voc.loss.use_sigmoid


def test_the_size_of_images_is_remarked_on():
    assert any('512x1024 pixels meet a DiT that was trained at 64x64' in remark
               for remark in explain(stock(PSP), backbone=dict(arch=ARCH)).remarks)
    assert not any('pixels meet' in remark for remark in explain(stock(
        PSP, crop_size=(64, 64), train_dataloader__dataset__pipeline=[dict(type='RandomCrop', crop_size=(64, 64))]),
        backbone=dict(arch=ARCH)).remarks)


def test_sizes_are_read_without_weights():
    found = sizes(runs.ROOT / 'configs' / 'fashion_dit')
    assert (found.width, found.token_stride, found.image_size) == (128, 8, 64)
    assert [sizes(arch).width for arch in (tiny.ARCH, dict(transformer=tiny.SD3, vae=tiny.VAE))] == [16, 16]
    assert sizes(tiny.PIXEL_ARCH).token_stride == 2
    sana = sizes(PUBLISHED['Efficient-Large-Model/Sana_1600M_1024px_diffusers'])  # whose VAE is of another class
    assert (sana.width, sana.depth, sana.token_stride, sana.image_size) == (2240, 20, 32, 1024)
    lightning = sizes(PUBLISHED['checkpoints/lightningdit_xl_256'])  # whose transformer is none of diffusers'
    assert (lightning.width, lightning.depth, lightning.token_stride, lightning.image_size) == (1152, 28, 16, 256)


REFUSED = [
    ('mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', {}, 'decode_head PIDHead reads the three branches of PIDNet'),
    ('mmseg::san/san-vit-b16_coco-stuff164k-640x640.py', {}, 'the model is a MultimodalEncoderDecoder'),
    ('mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py', {}, 'the model is a MAE'),
    (PSP, dict(default_scope='mmdet'), "default_scope is 'mmdet', of another toolbox"),
    (PSP, dict(model__decode_head=None), 'the model has no decode_head'),
    (PSP, dict(model__decode_head__in_index=4), 'decode_head PSPHead reads level 4, and ResNetV1c gives 4 levels, 0 to 3'),
    (PSP, dict(model__backbone=None), 'the model has no backbone'),
    (PSP, dict(model__neck=[dict(type='FPN')]), 'the model has a list of necks'),
    (PSP, dict(model__backbone__type='NoSuchNet'), 'the levels of NoSuchNet are not known, since it cannot be built'),
    (PSP, dict(model__decode_head__type='NoSuchHead'), 'decode_head NoSuchHead cannot read'),
    (PSP, dict(model__backbone__type='mmaselect.DiTBackbone'), 'the backbone is a DiTBackbone already'),
    (PSP, dict(model=None), 'the config has no model'),
    (RESNET, dict(model__head=None), 'the model has no head'),
    ('mmpretrain::resnet/resnet50_8xb32-cutmix_in1k.py', {}, 'train_cfg names the batch augment BatchCutMix')]


@pytest.mark.parametrize(('name', 'changes', 'reason'), REFUSED, ids=lambda value: value if isinstance(value, str) else '')
def test_refused_by_name(name, changes, reason):
    with pytest.raises(SwapError, match=reason.replace('(', r'\(')):
        swapped(stock(name, **changes))


@pytest.mark.skipif(importable('mmcv.ops'), reason='operators are installed')
def test_operators_that_are_not_there_are_named():
    with pytest.raises(SwapError, match='decode_head PSAHead needs compiled operators of mmcv'):
        swapped(stock('mmseg::psanet/psanet_r50-d8_4xb2-80k_cityscapes-512x1024.py'))


def test_a_dit_has_to_be_named():
    with pytest.raises(SwapError, match='name the DiT'):
        swap(stock(PSP))
    with pytest.raises(FileNotFoundError, match='neither a folder'):
        swap(stock(PSP), 'no/such-dit')


# The file that inherits


@pytest.mark.parametrize('name', [PSP, RESNET, 'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
                                  'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py'])
def test_the_written_config_is_the_swapped_one(name, tmp_path):
    new = swapped(stock(name))
    path = tmp_path / 'swapped.py'
    path.write_text(inherit.inheriting(name, stock(name), new, path, 'A comment.'))
    assert Config.fromfile(path).to_dict() == new.to_dict()
    assert str(tmp_path) not in path.read_text() and len(path.read_text().splitlines()) < 100


def test_a_file_is_named_by_its_place(tmp_path):
    (tmp_path / 'mine').mkdir()
    assert inherit.base(tmp_path / 'mine.py', tmp_path / 'mine' / 'out.py') == repr('../mine.py')


def test_overrides_delete_what_is_gone():
    assert inherit.overrides(dict(a=dict(x=1, y=2), b=1), dict(a=dict(x=1), b=1)) == dict(a=dict(_delete_=True, x=1))
    assert inherit.overrides(dict(a=dict(x=1)), dict(a=[1])) == dict(a=[1])
    assert inherit.overrides(dict(a=dict(x=1, y=[1])), dict(a=dict(x=1, y=[2]))) == dict(a=dict(y=[2]))


def test_a_config_that_is_not_there_is_named_with_those_like_it():
    with pytest.raises(FileNotFoundError, match=r'did you mean .*pspnet_r50-d8_4xb2-40k_cityscapes-512x1024'):
        inherit.find('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1025.py')
    with pytest.raises(ValueError, match='mmdet:: is not a toolbox'):
        inherit.find('mmdet::yolo/yolo.py')
    with pytest.raises(FileNotFoundError, match='there is no config nothing.py'):
        inherit.find('nothing.py')
