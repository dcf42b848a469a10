"""What has to hold on a GPU as well. Where there is none, the same runs on the CPU, so that the tests themselves are tested.

``make gpu`` runs this file first.
"""
import copy

import pytest
import tiny
import torch

from mmaselect.extract import seeded_noise
from mmaselect.selection import SelectionPolicy, TensorImages, sweep

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TOLERANCE = dict(rtol=1e-4, atol=1e-4)  # of float32 on two kinds of device
TAPS = ((1, 'query'), (2, 'hidden'))
ARCHS = {'dit': tiny.ARCH, 'flow': dict(tiny.ARCH, scheduler=tiny.FLOW), 'pixels': tiny.PIXEL_ARCH}


def pair(arch='dit', dtype=torch.float32):
    """The same extractor on the CPU and on the device."""
    here = tiny.extractor(TAPS, ARCHS[arch], dtype=dtype)
    return here, copy.deepcopy(here).to(DEVICE)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('timestep', [0, 300, 999])
def test_features_are_those_of_the_cpu(arch, timestep):
    here, there = pair(arch)
    images = tiny.images(3, 16, 24)
    with torch.no_grad():
        for expected, found in zip(here(images, timestep), there(images.to(DEVICE), timestep), strict=True):
            assert found.device.type == DEVICE and expected.std() > 0.01
            torch.testing.assert_close(found.cpu(), expected, **TOLERANCE)


def test_folding_there_changes_nothing():
    _, there = pair(dtype=torch.float64)
    images = tiny.images(2, 16, 24, dtype=torch.float64).to(DEVICE)
    with torch.no_grad():
        # Not beside the CPU's: diffusers makes the sines of a timestep in float32, and a GPU's differ by 1e-7.
        expected = there(images, 150)
        found = there.fold([150])(images, 150)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def test_seeded_noise_is_the_same_to_the_last_bit():
    latent = torch.zeros(2, 4, 8, 12)
    expected, found = (seeded_noise(zeros.shape, 3) for zeros in (latent, latent.to(DEVICE)))
    assert torch.equal(expected, found.cpu()) and expected.std() > 0.5


def test_the_sweep_has_the_scores_of_the_cpu():
    here, there = pair()
    images = TensorImages(tiny.images(24, 16, 24), None, 8)
    policy = SelectionPolicy(candidates=[0, 200, 700], score='half_consistency', seed=1)
    expected, found = (sweep(one, images, policy) for one in (here, there))
    scores = [[candidate.score for candidate in result.candidates] for result in (expected, found)]
    assert len(set(scores[0])) == 3
    assert scores[1] == pytest.approx(scores[0], abs=1e-3) and found.timestep == expected.timestep


def test_gradients_there():
    """Of a trained DiT, whose blocks are computed anew in the backward pass or not."""
    _, there = pair()
    images, gradients = tiny.images(2, 16, 24).to(DEVICE), []
    for there.checkpointing in (False, True):
        there.zero_grad()
        sum(found.square().mean() for found in there(images, 100)).backward()
        gradients.append([p.grad.cpu().clone() for p in there.family.parameters() if p.grad is not None])
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-4
    for plain, anew in zip(*gradients, strict=True):
        torch.testing.assert_close(anew, plain, **TOLERANCE)


def test_autocast_to_bfloat16_stays_near():
    _, there = pair()
    images = tiny.images(2, 16, 24).to(DEVICE)
    with torch.no_grad():
        expected = there(images, 100)
        with torch.autocast(DEVICE, torch.bfloat16):
            found = there(images, 100)
    for one, other in zip(expected, found, strict=True):
        error = (one - other.float()).abs().max() / one.abs().max()
        assert 0 < error < 0.05
