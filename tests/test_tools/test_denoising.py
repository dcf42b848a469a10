"""The objective of the pretraining: the plain one is diffusers' own forward, and masked tokens are seen by no early block."""
import pytest
import runs
import torch
from diffusers import DiTTransformer2DModel


@pytest.fixture
def denoiser(monkeypatch):
    monkeypatch.syspath_prepend(str(runs.ROOT / 'tools'))
    import denoising
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dit = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=3,
                                    sample_size=8, patch_size=2, norm_type='ada_norm_zero', num_embeds_ada_norm=1).eval()
    return denoising, denoising.Denoiser(dit, decoder=1).eval()


def noisy(count=3):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([5., 200., 900.])[:count]


def test_without_a_mask_it_is_the_forward_of_diffusers(denoiser):
    denoising, model = denoiser
    x, t = noisy()
    out = model.dit(x, timestep=t, class_labels=torch.ones(3, dtype=torch.long)).sample
    torch.testing.assert_close(model(x, t)[0], denoising.patches(out, 2))


def test_all_tokens_visible_in_another_order_say_the_same(denoiser):
    denoising, model = denoiser
    x, t = noisy()
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)).argsort(1)
    torch.testing.assert_close(model(x, t, order, 16)[0], denoising.take(model(x, t)[0], order), rtol=1e-4, atol=1e-5)


def test_masked_tokens_are_seen_by_no_block_and_asked_for(denoiser):
    denoising, model = denoiser
    x, t = noisy()
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)).argsort(1)[:, :12]
    out = model(x, t, order, 4)[0]
    assert out.shape == (3, 12, 12)
    hidden = torch.ones(3, 16, 1).scatter(1, order[:, :4, None], 0).reshape(3, 1, 4, 4)  # 1 where a token is not visible
    changed = x + 7 * hidden.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(model(changed, t, order, 4)[0], out)
    assert (model(x + 1, t, order, 4)[0] - out).abs().max() > 1e-3


def test_maps_are_those_of_the_blocks_and_may_be_oblong(denoiser):
    _, model = denoiser
    x, t = noisy()
    seen = []
    hook = model.dit.transformer_blocks[1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    maps = model.maps(x, t)
    hook.remove()
    assert len(maps) == 3
    torch.testing.assert_close(maps[1].flatten(2).transpose(1, 2), seen[0])
    assert [tuple(m.shape) for m in model.maps(x[..., :4, :], t)] == [(3, 16, 2, 4)] * 3


def test_more_decoder_blocks_than_blocks_are_refused(denoiser):
    denoising, model = denoiser
    with pytest.raises(ValueError, match='3 of 3 blocks cannot see all tokens'):
        denoising.Denoiser(model.dit, decoder=3)


def test_vectors_are_of_the_visible_tokens_before_the_decoder(denoiser):
    denoising, plain = denoiser
    model = denoising.Denoiser(plain.dit, decoder=1, embedding=5).eval()
    x, t = noisy()
    assert plain(x, t)[1] is None
    order = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)).argsort(1)
    seen = []
    hook = model.dit.transformer_blocks[1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    vectors = model(x, t, order, 4)[1]
    hook.remove()
    assert seen[0].shape == (3, 4, 16) and vectors.shape == (3, 5)
    torch.testing.assert_close(vectors, model.projection(seen[0].mean(1)))


def test_vectors_without_a_decoder_are_of_the_last_block(denoiser):
    denoising, plain = denoiser
    model = denoising.Denoiser(plain.dit, embedding=5).eval()
    x, t = noisy()
    tokens = model.maps(x, t)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(model(x, t)[1], model.projection(tokens.mean(1)))


def test_contrast_is_the_cross_entropy_of_each_view_with_its_other(denoiser):
    denoising, _ = denoiser
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).double()
    expected = []
    for row in range(6):
        others = [torch.exp(unit[row] @ unit[other] / 0.2) for other in range(6) if other != row]
        expected.append(-torch.log(torch.exp(unit[row] @ unit[(row + 3) % 6] / 0.2) / sum(others)))
    assert denoising.contrast(vectors, 0.2).item() == pytest.approx(sum(expected).item() / 6, rel=1e-5)
    twins = torch.eye(4).repeat(2, 1)
    assert denoising.contrast(twins, 0.2) < denoising.contrast(twins[[0, 1, 2, 3, 5, 6, 7, 4]], 0.2)
