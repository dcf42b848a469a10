"""The inference APIs of both toolboxes run no hooks: the checkpoint alone must bring the timestep."""
import numpy as np
import pytest
import runs
import torch
from marks import quick
from mmengine.registry import init_default_scope
from mmpretrain import ImageClassificationInferencer
from mmseg.apis import inference_model, init_model

from mmaselect.openmm import hook


@pytest.fixture(scope='module', params=quick(['aselect_ade20k', 'aselect_fashion_scenes'], ['aselect_ade20k']))
def segmentor(request, data, tmp_path_factory):
    return train(request.param, data, tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module', params=quick(['aselect_cub', 'aselect_fashion_mnist'], ['aselect_cub']))
def classifier(request, data, tmp_path_factory):
    return train(request.param, data, tmp_path_factory.mktemp('run'))


def train(name, data, folder):
    """Name, config file, checkpoint, and the trained model."""
    changes = {'train_cfg.max_iters': 1} if runs.segments(name) else {}
    changes['train_cfg.val_interval'] = 9  # no validation
    runner = runs.runner(name, data, folder, changes)
    runner.train()
    runner.cfg.dump(folder / 'config.py')
    return name, folder / 'config.py', (folder / 'last_checkpoint').read_text(), runner.model


@pytest.fixture(autouse=True)
def no_sweep(monkeypatch):
    runs.forget()
    monkeypatch.setattr(hook, 'sweep', None)  # anyone who calls it fails


def predict(model, scope, pipeline, path):
    """What a trained model says of an image, without the inference API."""
    from mmengine.dataset import Compose, pseudo_collate
    init_default_scope(scope)
    item = Compose(pipeline)(dict(img_path=str(path)))
    with torch.no_grad():
        return model.eval().test_step(pseudo_collate([item]))[0]


def test_mmseg(segmentor, data):
    name, config, checkpoint, trained = segmentor
    image = next((data / name.partition('_')[2]).glob('im*/val*/*'))
    model = init_model(str(config), checkpoint, device=str(next(trained.parameters()).device))
    assert model.backbone.chosen == trained.backbone.chosen is not None
    found = inference_model(model, str(image))
    pipeline = [t for t in model.cfg.test_dataloader.dataset.pipeline if t.type != 'LoadAnnotations']
    expected = predict(trained, 'mmseg', pipeline, image)
    assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)
    torch.testing.assert_close(found.seg_logits.data, expected.seg_logits.data)
    assert found.seg_logits.data.std() > 0


def test_mmpretrain(classifier, data):
    _, config, checkpoint, trained = classifier
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    inferencer = ImageClassificationInferencer(str(config), pretrained=checkpoint, device='cpu')
    assert inferencer.model.backbone.chosen == trained.backbone.chosen is not None
    result, = inferencer(image)
    inferencer.model.load_state_dict(trained.state_dict())  # the same network, by another way
    expected, = inferencer(image)
    np.testing.assert_array_equal(result['pred_scores'], expected['pred_scores'])
    assert result['pred_score'] == pytest.approx(result['pred_scores'].max()) and result['pred_class']
    assert result['pred_scores'].std() > 0


def test_without_a_checkpoint_the_apis_say_what_to_do(segmentor, data):
    name, config, *_ = segmentor
    image = next((data / name.partition('_')[2]).glob('im*/val*/*'))
    with pytest.raises(RuntimeError, match='DiTBackbone has no timestep yet'):
        inference_model(init_model(str(config), device='cpu'), str(image))
