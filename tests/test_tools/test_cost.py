"""tools/analysis_tools/cost.py: its counts by hand. That it measures a trained model is in test_compare.py."""
import runpy

import pytest
import runs
import torch
import torch.nn.functional as F
from torch import nn


@pytest.fixture(scope='module')
def cost():
    return runpy.run_path(str(runs.ROOT / 'tools' / 'analysis_tools' / 'cost.py'))


@pytest.mark.parametrize('layer, shape, multiply_adds', [
    (nn.Linear(8, 3), (2, 5, 8), 2 * 5 * 8 * 3),
    (nn.Conv2d(4, 6, 3, padding=1), (1, 4, 7, 5), 7 * 5 * 6 * 3 * 3 * 4),
    (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 3, 5, 8), 2 * 3 * (5 * 5 * 8 + 5 * 5 * 8)),
    # four projections of ten tokens, and the attention of two images
    pytest.param(nn.MultiheadAttention(8, 2, batch_first=True).eval(), (2, 5, 8), 4 * 10 * 8 * 8 + 2 * (5 * 5 * 8 + 5 * 5 * 8),
                 marks=pytest.mark.skipif(not hasattr(torch.backends, 'mha'), reason='torch 2.1 cannot but fuse it')),
], ids=['linear', 'convolution', 'attention', 'multi-head attention'])
@torch.no_grad()
def test_flops_by_hand(cost, layer, shape, multiply_adds):
    x = torch.randn(shape)
    inputs = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
    assert cost['count_flops'](lambda: layer(*inputs)) == multiply_adds


def test_attention_is_as_before_after_counting(cost):
    assert torch.backends.cuda.flash_sdp_enabled()
    with cost['plain_attention']():
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_warm_up_is_not_timed(cost):
    calls = []
    cost['time_calls'](lambda: calls.append(1), 3)
    assert len(calls) == cost['WARM_UP'] + 3
