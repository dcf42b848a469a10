"""The one DiTBackbone, unchanged, under the heads of both toolboxes."""
import pytest
import runs
import tiny
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from mmaselect.openmm import DiTBackbone

CLASSES = 5
BACKBONE = dict(type='mmaselect.DiTBackbone', arch=tiny.ARCH, taps=[(1, 'hidden'), (-1, 'value')], timestep=100)
SEG_HEAD = dict(channels=8, num_classes=CLASSES, norm_cfg=dict(type='BN'), align_corners=False,
                loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False))
PYRAMID = dict(type='mmaselect.AutoTimestepNeck', in_channels=16, num_taps=2, output='pyramid', scales=(2, 1))
MAP = dict(type='mmaselect.AutoTimestepNeck', in_channels=16, num_taps=2, output='map', norm='layer')
HEADS = {
    'UPerHead': (PYRAMID, dict(SEG_HEAD, type='UPerHead', in_channels=[16, 16], in_index=[0, 1])),
    'FCNHead': (MAP, dict(SEG_HEAD, type='FCNHead', in_channels=32, in_index=0, num_convs=1)),
    'SegformerHead': (PYRAMID, dict(SEG_HEAD, type='SegformerHead', in_channels=[16, 16], in_index=[0, 1])),
}


@pytest.fixture(autouse=True)
def seeded():
    runs.forget()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    runs.forget()


def segmentor(name):
    neck, head = HEADS[name]
    preprocessor = dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True, size=(24, 32))
    init_default_scope('mmseg')
    return MODELS.build(dict(type='mmseg.EncoderDecoder', data_preprocessor=preprocessor, backbone=BACKBONE, neck=neck,
                             decode_head=head, test_cfg=ConfigDict(mode='whole')))


def scenes(count=2, height=24, width=32):
    def sample():
        mask = PixelData(data=torch.randint(CLASSES, (1, height, width)))
        size = dict(img_shape=(height, width), ori_shape=(height, width))
        return SegDataSample(gt_sem_seg=mask, metainfo=size)
    return dict(inputs=[torch.randint(256, (3, height, width), dtype=torch.uint8) for _ in range(count)],
                data_samples=[sample() for _ in range(count)])


def classifier():
    neck = dict(type='mmaselect.AutoTimestepNeck', in_channels=16, num_taps=2, output='vector', pool='attention', num_heads=4)
    head = dict(type='LinearClsHead', in_channels=32, num_classes=CLASSES, loss=dict(type='CrossEntropyLoss'))
    preprocessor = dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
    init_default_scope('mmpretrain')
    return MODELS.build(dict(type='mmpretrain.ImageClassifier', data_preprocessor=preprocessor, backbone=BACKBONE, neck=neck,
                             head=head))


def photos(count=3):
    return dict(inputs=torch.randint(256, (count, 3, 24, 32), dtype=torch.uint8),
                data_samples=[DataSample().set_gt_label(k % CLASSES) for k in range(count)])


def backward(model, data):
    """One training step's gradients; the losses."""
    model.train()
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return losses


def check_gradients(model, head):
    trained = [p for part in (model.neck, head) for p in part.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert type(model.backbone) is DiTBackbone
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize('name', HEADS)
def test_segmentation(name):
    model, data = segmentor(name), scenes()
    model.decode_head.dropout = None
    losses = backward(model, data)
    # What it is of is the head's own logits, put on the mask's grid.
    model.decode_head.loss_by_feat = lambda logits, samples: logits
    inputs = model.data_preprocessor(data, True)
    logits = F.interpolate(model.decode_head.loss(model.extract_feat(inputs['inputs']), None, None), (24, 32), mode='bilinear')
    masks = torch.stack([sample.gt_sem_seg.data[0] for sample in data['data_samples']]).long()
    torch.testing.assert_close(losses['decode.loss_ce'], F.cross_entropy(logits, masks))
    check_gradients(model, model.decode_head)
    model.eval()
    predicted = model.test_step(scenes(1))[0]
    assert predicted.pred_sem_seg.data.shape == (1, 24, 32)
    assert predicted.seg_logits.data.shape == (CLASSES, 24, 32)
    assert predicted.seg_logits.data.isfinite().all()


def test_classification():
    model = classifier()
    data = photos()
    losses = backward(model, data)
    pooled = model.extract_feat(model.data_preprocessor(data, True)['inputs'])
    labels = torch.tensor([int(sample.gt_label) for sample in data['data_samples']])
    torch.testing.assert_close(losses['loss'], F.cross_entropy(model.head(pooled), labels))
    check_gradients(model, model.head)
    model.eval()
    predicted = model.test_step(photos())
    scores = torch.stack([sample.pred_score for sample in predicted])  # (3, classes)
    torch.testing.assert_close(scores.sum(1), torch.ones(3))
    assert [int(sample.pred_label) for sample in predicted] == scores.argmax(1).tolist()


@pytest.mark.parametrize('toolbox', ['mmseg', 'mmpretrain'])
def test_a_step_of_the_optimizer_leaves_the_dit_alone(toolbox):
    model, data = (segmentor('FCNHead'), scenes) if toolbox == 'mmseg' else (classifier(), photos)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    backward(model, data())
    optimizer.step()
    changed = {name.partition('.')[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed - {'neck'} == {'decode_head' if toolbox == 'mmseg' else 'head'}
