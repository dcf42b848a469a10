"""Crops, wide images, slide inference and test-time augmentation: right shapes, and a crop depends on itself alone."""
import pytest
import runs
import tiny
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from mmaselect.openmm import DiTBackbone
from mmaselect.registry import MODELS

NAME = 'aselect_ade20k'


@pytest.fixture(scope='module')
def segmentor(data, tmp_path_factory):
    """UPerNet on a tiny DiT with slide inference in crops of 32 pixels and strides of 21."""
    cfg = runs.config(NAME, data, tmp_path_factory.mktemp('run'), {'model.backbone.timestep': 50})
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval()


def predict(model, images):
    metas = [dict(img_shape=image.shape[1:], ori_shape=image.shape[1:], pad_shape=image.shape[1:]) for image in images]
    with torch.no_grad():
        return model.inference(images, metas)  # (B, classes, H, W)


@pytest.mark.parametrize('height, width', [(40, 128), (32, 128), (32, 32), (75, 33)])
def test_slide_inference_covers_images_of_any_shape(segmentor, height, width):
    logits = predict(segmentor, tiny.images(1, height, width))
    assert logits.shape == (1, 150, height, width)
    assert logits.isfinite().all()


def test_slide_inference_is_the_mean_of_its_crops(segmentor):
    image = tiny.images(1, 32, 53)  # two crops: columns 0 to 31 and 21 to 52
    logits = predict(segmentor, image)
    left, right = predict(segmentor, image[..., :32]), predict(segmentor, image[..., 21:])
    torch.testing.assert_close(logits[..., :21], left[..., :21])
    torch.testing.assert_close(logits[..., 21:32], (left[..., 21:] + right[..., :11]) / 2)
    torch.testing.assert_close(logits[..., 32:], right[..., 11:])


def test_a_crop_does_not_depend_on_the_rest_of_the_image_or_batch(segmentor):
    image, other = tiny.images(1, 40, 128), tiny.images(1, 40, 128, seed=1)
    alone = predict(segmentor, image)
    torch.testing.assert_close(predict(segmentor, torch.cat([other, image]))[1:], alone)
    changed = predict(segmentor, torch.cat([image[..., :100], other[..., 100:]], -1))
    torch.testing.assert_close(changed[..., :84], alone[..., :84])  # crops that end before column 96
    assert not torch.allclose(changed[..., 100:], alone[..., 100:], atol=1e-3)


@pytest.mark.parametrize('pos_scale', [None, 'extrapolate'])
def test_a_wide_image_as_a_whole(pos_scale):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = DiTBackbone(arch=tiny.ARCH, timestep=50, taps=[(1, 'query'), (3, 'hidden')], pos_scale=pos_scale).eval()
    images = tiny.images(3, 24, 96)
    maps = backbone(images)
    assert [tuple(m.shape) for m in maps] == [(3, 16, 6, 24)] * 2
    for one, all_of_them in zip(backbone(images[1:2]), maps, strict=True):
        torch.testing.assert_close(one, all_of_them[1:2])


def test_flips_and_scales_end_at_the_images_own_size(data, tmp_path):
    """mmseg's own test-time augmentation of the shipped config: six scales and both flips, slide inference in each."""
    cfg = runs.config(NAME, data, tmp_path, {'model.backbone.timestep': 50})
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    runner = runs.Runner.from_cfg(cfg)
    batch = next(iter(runner.test_dataloader))
    assert len(batch['inputs']) == 12 and len({tuple(image[0].shape) for image in batch['inputs']}) == 6
    sample, = runner.model.eval().test_step(batch)
    assert sample.pred_sem_seg.data.shape == (1, *sample.ori_shape)
    assert sample.seg_logits.data.isfinite().all() and sample.seg_logits.data.std() > 0
