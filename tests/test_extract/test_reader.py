"""Reading a model whose own forward runs: what is left behind, and what may be around and inside of its blocks."""
import copy
import threading
from types import SimpleNamespace

import diffusers
import pytest
import tiny
import torch
from torch.utils.checkpoint import checkpoint

from mmaselect.extract import TAPS, reader
from mmaselect.extract.families import Family
from mmaselect.extract.lora import add_lora

FLUX = dict(patch_size=1, in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(4, 6, 6))
SINGLE = reader.names(attn=None, mlp=None)  # one layer after both
KINDS = reader.Blocks('transformer_blocks', output=1), reader.Blocks('single_transformer_blocks', SINGLE, output=1)
TEXT, GRID = 5, (4, 6)


class Flux(Family, wraps='Tiny'):
    kinds = KINDS

    def inputs(self, noisy, time):
        height, width = noisy.shape[-2:]
        ids = torch.stack(torch.meshgrid(torch.zeros(1), *map(torch.arange, (float(height), float(width))), indexing='ij'), -1)
        text = torch.ones(len(noisy), TEXT, 12).double()
        return dict(hidden_states=noisy.flatten(2).transpose(1, 2), encoder_hidden_states=text,
                    pooled_projections=torch.ones(len(noisy), 10).double(), timestep=time / 1000, img_ids=ids.view(-1, 3),
                    txt_ids=torch.zeros(TEXT, 3), guidance=torch.full((len(noisy),), 3.5))


del Family.known['Tiny']


@pytest.fixture(scope='module')
def flux():
    torch.manual_seed(0)
    return Flux(diffusers.FluxTransformer2DModel(**FLUX).double().eval())


def noisy(count=2):
    return torch.randn(count, 16, *GRID, generator=torch.Generator().manual_seed(0)).double()


def residue(model):
    """What reading could leave in the modules."""
    return [name for name, module in model.named_modules()
            if 'forward' in module.__dict__ or module._forward_hooks or module._forward_pre_hooks]


def test_two_kinds_of_blocks_make_up_the_depth(flux):
    """Taps of double and of single blocks, where text and image share their layers, against hooks on a whole run."""
    assert flux.depth == 5 and [kind.path for _, kind in flux.places()].count('single_transformer_blocks') == 3
    taps = [(index, tap) for index in range(5) for tap in TAPS if index < 2 or tap not in ('attn', 'mlp')]
    flux.check(taps)
    seen, handles = {}, []
    for index, (block, _) in enumerate(flux.places()):
        for tap, module in (('query', block.attn.to_q), ('key', block.attn.to_k), ('value', block.attn.to_v)):
            handles.append(module.register_forward_hook(lambda m, args, out, key=(index, tap): seen.__setitem__(key, out)))
        handles.append(block.attn.to_q.register_forward_pre_hook(
            lambda m, args, key=(index, 'modulated'): seen.__setitem__(key, args[0])))
        handles.append(block.register_forward_hook(lambda m, args, out, key=(index, 'hidden'): seen.__setitem__(key, out[1])))
        if index < 2:
            for tap, module in (('attn', block.attn.to_out[0]), ('mlp', block.ff)):
                handles.append(module.register_forward_hook(lambda m, args, out, key=(index, tap): seen.__setitem__(key, out)))
    flux.predict(noisy(), torch.tensor([400.]))
    for handle in handles:
        handle.remove()
    assert seen[3, 'query'].shape[1] == TEXT + 24 and seen[1, 'query'].shape[1] == 24
    for tap, tokens in zip(taps, flux.read(noisy(), torch.tensor([400.]), taps), strict=True):
        assert tokens.shape == (2, 24, 32)
        torch.testing.assert_close(tokens, seen[tap][:, -24:], rtol=0, atol=1e-10)


def test_a_block_says_what_it_has_not(flux):
    with pytest.raises(ValueError, match="block 3 has no 'attn': FluxSingleTransformerBlock .* It has modulated, query, key, "
                                         'value, hidden'):
        flux.check([(1, 'attn'), (3, 'attn')])


def test_parameters_know_their_block(flux):
    assert flux.block_of('single_transformer_blocks.2.attn.to_q.weight') == 4
    assert flux.block_of('transformer_blocks.1.ff.net.2.bias') == 1
    assert flux.block_of('model.transformer_blocks.1.ff.net.2.bias') == 1
    assert flux.block_of('x_embedder.weight') is None


def test_image_first_and_fused_layers():
    """A block whose one layer makes queries, keys and values of the image's tokens, and of others behind them."""
    class Fused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = torch.nn.Linear(4, 12), torch.nn.Linear(4, 4)

        def forward(self, x):
            query, key, value = self.qkv(x).chunk(3, -1)
            return self.out(query * key + value)

    block, x = Fused(), torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    kind = reader.Blocks('', dict(modulated='qkv', query=('qkv', 0), value=('qkv', 2)), image='first')
    found = reader.read([(block, kind)], [(0, 'modulated'), (0, 'value'), (0, 'hidden')], lambda: block(x), tokens=6, width=4,
                        lock=reader.Lock())
    for ours, expected in zip(found, (x, block.qkv(x)[..., 8:], block(x)), strict=True):
        torch.testing.assert_close(ours, expected[:, :6])


@pytest.mark.parametrize('where', ['before', 'within'])
def test_nothing_is_left_behind(where):
    extractor = tiny.extractor([(1, 'query'), (2, 'hidden')])
    before, model = extractor(tiny.images(), 7), extractor.family.model
    assert residue(model) == []
    broken = model.pos_embed.proj if where == 'before' else model.transformer_blocks[1].attn1.to_k
    weight = broken.weight.data
    broken.weight.data = weight[:1]
    with pytest.raises(RuntimeError):
        extractor(tiny.images(), 7)
    assert residue(model) == []
    broken.weight.data = weight
    assert all(torch.equal(one, other) for one, other in zip(extractor(tiny.images(), 7), before, strict=True))


def test_a_layer_that_did_not_run_is_named():
    extractor = tiny.extractor([(1, 'key')])
    extractor.family.model.transformer_blocks[1].attn1.forward = lambda hidden_states, **kwargs: hidden_states
    with pytest.raises(RuntimeError, match=r'BasicTransformerBlock ran without key: were its layers fused'):
        extractor(tiny.images(), 7)


def test_threads_and_copies_do_not_hear_each_other():
    extractor = tiny.extractor([(0, 'value'), (2, 'attn')])
    other = copy.deepcopy(extractor)
    other.set_taps([(3, 'hidden')])
    pictures = [tiny.images(2, 8 + 4 * (k % 3), 12, seed=k) for k in range(12)]
    expected = [(extractor(one, 50 * k), other(one, 50 * k)) for k, one in enumerate(pictures)]
    found = [None] * len(pictures)

    def work(k):
        found[k] = extractor(pictures[k], 50 * k), other(pictures[k], 50 * k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert residue(extractor.family) == []


def test_frozen_runs_build_no_graph():
    extractor = tiny.extractor([(1, 'query'), (2, 'hidden')]).requires_grad_(False)
    assert not any(m.requires_grad for m in extractor(tiny.images(), 7))


def test_autocast():
    extractor = tiny.extractor([(1, 'query'), (2, 'hidden')])
    exact = extractor(tiny.images(), 7)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = extractor(tiny.images(), 7)
    assert rounded[0].dtype == torch.bfloat16
    for one, other in zip(rounded, exact, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.1, atol=0.1)


@pytest.mark.parametrize('tap', ['query', 'mlp', 'hidden'])
def test_gradients_of_every_tap_survive_checkpointing(tap):
    """Also where the last block is left in its middle; and nothing of the graph outlives the features."""
    gradients = []
    for checkpointing in (False, True):
        extractor = tiny.extractor([(0, 'key'), (2, tap)], dtype=torch.float64)
        extractor.checkpointing = checkpointing
        sum(m.square().sum() for m in extractor(tiny.images(dtype=torch.float64), 7)).backward()
        gradients.append({name: p.grad for name, p in extractor.named_parameters() if p.grad is not None})
        assert residue(extractor.family) == []
    torch.testing.assert_close(gradients[1], gradients[0])


def test_checkpointed_features_are_let_go():
    import gc
    import weakref
    extractor = tiny.extractor([(0, 'key'), (2, 'hidden')])
    extractor.checkpointing = True
    maps = extractor(tiny.images(), 7)
    watched = [weakref.ref(m) for m in maps] + [weakref.ref(maps[0]._base if maps[0]._base is not None else maps[0])]
    gc.disable()
    try:
        del maps
        assert [ref() for ref in watched] == [None] * 3
    finally:
        gc.enable()


def test_what_wraps_a_block_is_passed_by():
    """As FSDP and PyTorch's checkpoint wrapper do, and the block is still left in its middle."""
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self._fsdp_wrapped_module, self.calls = module, []

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self._fsdp_wrapped_module, name)

        def forward(self, *args, **kwargs):
            self.calls.append('in')
            output = checkpoint(self._fsdp_wrapped_module, *args, use_reentrant=False, **kwargs)
            self.calls.append('out')  # would be missing, and FSDP's state broken, were the block left by an exception
            return output

    extractor = tiny.extractor([(0, 'key'), (2, 'query')])
    expected = extractor(tiny.images(), 7)
    blocks = extractor.family.model.transformer_blocks
    for index in range(4):
        blocks[index] = Wrapper(blocks[index])
    for theirs, ours in zip(expected, extractor(tiny.images(), 7), strict=True):
        assert torch.equal(ours, theirs)
    assert [block.calls for block in blocks] == [['in', 'out']] * 3 + [[]]


def test_adapters_are_read_through(flux):
    """LoRA's layer stands where the plain one stood, and its output is the tap."""
    extractor = tiny.extractor([(1, 'value'), (1, 'hidden')])
    add_lora(extractor, r=2, alpha=4, targets=['to_v'])
    for name, parameter in extractor.named_parameters():
        if '.lora_B.' in name:
            torch.nn.init.ones_(parameter)
    seen = []
    handle = extractor.family.model.transformer_blocks[1].attn1.to_v.register_forward_hook(lambda m, args, out: seen.append(out))
    value, _ = extractor(tiny.images(), 7)
    handle.remove()
    assert torch.equal(value.flatten(2).transpose(1, 2), seen[0])


def test_adapters_that_miss_a_kind_of_block_are_told_of(flux, recwarn):
    """As to_q misses blocks whose queries, keys and values are one layer."""
    parts = SimpleNamespace(family=copy.deepcopy(flux))
    parts.used_parameters = lambda: list(parts.family.parameters())
    with pytest.warns(UserWarning, match='no lora target is in FluxSingleTransformerBlock, whose layers are attn.to_k, '):
        add_lora(parts, r=2, targets=['add_q_proj'])
    recwarn.clear()
    parts.family = copy.deepcopy(flux)
    add_lora(parts, r=2, targets=['to_q'])
    assert not [one for one in recwarn if 'lora' in str(one.message)]
