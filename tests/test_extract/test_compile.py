"""torch.compile as a switch: the same features, compiled once."""
import copy

import pytest
import tiny
import torch
from marks import quick
from torch._dynamo.utils import counters

from mmaselect.extract.noise import seeded_noise

TAPS = [(0, 'query'), (2, 'hidden')]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters['stats']['unique_graphs']


def features(extractor, height=8, count=2, seed=0):
    latent = tiny.latent(extractor, count, height, 12, seed)
    return extractor.features(latent, 500, seeded_noise(latent.shape[1:], seed)[None])


@pytest.mark.skipif(tiny.OLD_TORCH, reason='refused')
@pytest.mark.parametrize('backend', quick(['eager', 'aot_eager'], ['eager']))
@pytest.mark.parametrize('fold', quick([True, False], [True]))
def test_training_and_evaluation_compile_once_each(fold, backend):
    extractor = tiny.extractor(TAPS, dtype=torch.float64)
    if fold:
        extractor.fold([500])
    plain = copy.deepcopy(extractor)
    extractor.compile(backend=backend, fullgraph=True)
    assert extractor.state_dict().keys() == plain.state_dict().keys()
    optimizers = [torch.optim.SGD(each.used_parameters(), 0.01) for each in (plain, extractor)]
    counters.clear()
    for iteration in range(4):
        for each, optimizer in zip((plain, extractor), optimizers, strict=True):
            each.train()
            sum(m.square().mean() for m in features(each, seed=iteration)).backward()
            optimizer.step()
            optimizer.zero_grad()
            each.eval()
        with torch.no_grad():
            torch.testing.assert_close(features(extractor, seed=iteration), features(plain, seed=iteration))
        assert graphs() == 2, f'after iteration {iteration}'


@pytest.mark.skipif(tiny.OLD_TORCH, reason='refused')
def test_sizes_compile_at_most_twice_and_copies_share():
    """The second size makes the compiled blocks dynamic."""
    extractor = tiny.extractor(TAPS, dtype=torch.float64).fold([500])
    plain = copy.deepcopy(extractor)
    extractor.compile(backend='eager')
    with torch.no_grad():
        for each in (extractor, copy.deepcopy(extractor)):
            for height in (8, 12, 16, 20, 8):
                torch.testing.assert_close(features(each, height), features(plain, height))
    assert graphs() == 2


def test_an_old_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.1.2')
    with pytest.raises(RuntimeError, match='needs PyTorch 2.5 or newer, and this is 2.1.2'):
        tiny.extractor().compile()
