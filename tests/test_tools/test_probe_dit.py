"""The closed-form probe: against refits without the image, and on classes that are planted."""
import json

import numpy as np
import pytest
import runs
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

PROBE = runs.ROOT / 'tools' / 'probe_dit.py'


@pytest.fixture
def probe_dit(monkeypatch):
    monkeypatch.syspath_prepend(str(PROBE.parent))
    import probe_dit
    return probe_dit


def planted(count, classes=3, width=12, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    return 5 + 3 * (centres[labels] + noise * torch.randn(count, width, generator=generator)), labels


def test_left_out_accuracy_is_that_of_as_many_refits(probe_dit):
    features, labels = planted(30, noise=2.0)
    x = ((features - features.mean(0)) / (features.std(0) + 1e-6)).double()
    y = F.one_hot(labels).double()
    y = y - y.mean(0)
    right = 0
    for index in range(len(x)):
        others = torch.arange(len(x)) != index
        weights = torch.linalg.solve(x[others].T @ x[others] + 0.1 * len(x) * torch.eye(x.shape[1]).double(),
                                     x[others].T @ y[others])
        right += int((x[index] @ weights).argmax() == labels[index])
    assert right < 30
    assert probe_dit.left_out_accuracy(features, labels, 0.1) == pytest.approx(100 * right / 30)


def test_ridge_accuracy_finds_what_is_planted_and_nothing_in_noise(probe_dit):
    train, test = planted(300, noise=0.3), planted(90, noise=0.3, seed=1)
    assert probe_dit.ridge_accuracy(*train, *test) > 95
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(300, 12, generator=generator), torch.randn(900, 12, generator=generator)
    assert 20 < probe_dit.ridge_accuracy(noise[0], train[1], noise[1], torch.arange(900) % 3) < 46


def test_where_features_say_nothing_the_larger_class_is_named(probe_dit):
    features = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(400) % 10 == 0).long()
    assert probe_dit.left_out_accuracy(features, labels) == pytest.approx(90, abs=1)
    assert probe_dit.ridge_accuracy(features, labels, features, labels) == pytest.approx(90, abs=1)


def test_the_command_writes_a_row_for_each_timestep_and_block(probe_dit, tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (('train', 12), ('test', 3)):
        for name, low in (('bright', 128), ('dark', 0)):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f'{index}.png')
    extractor = tiny.extractor(arch=tiny.PIXEL_ARCH)
    extractor.family.model.save_pretrained(tmp_path / 'dit' / 'transformer')
    from diffusers import DDIMScheduler
    DDIMScheduler().save_pretrained(tmp_path / 'dit' / 'scheduler')
    printed = runs.run_here(PROBE, tmp_path / 'dit', '--train', tmp_path / 'train', '--test', tmp_path / 'test', '--size', 16,
                            '--per-class', 11, '--timesteps', 0, 300, '--blocks', '1', '1+3', '--json', tmp_path / 'rows.json')
    rows = json.loads((tmp_path / 'rows.json').read_text())
    assert [(row['timestep'], row['blocks'], row['labels']) for row in rows] == [
        (0, '1', 22), (0, '1+3', 22), (300, '1', 22), (300, '1+3', 22)]
    assert rows[0]['accuracy'] == 100 and 'timestep 0 blocks 1+3' in printed
