"""LoRA and activation checkpointing: what is trained, and that neither changes what the DiT computes."""
import sys

import pytest
import tiny
import torch

from mmaselect.extract.lora import add_lora
from mmaselect.openmm import DiTBackbone

LORA = dict(r=2, alpha=4, targets=['to_q', 'to_v', 'ff.net.2'])


def backbone(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiTBackbone(arch=tiny.ARCH, timestep=50, **options)


def test_fresh_adapters_change_no_feature():
    extractor = tiny.extractor(taps=[(1, 'value'), (2, 'hidden')])
    before = extractor(tiny.images(2, 12, 20), 50)
    add_lora(extractor, **LORA)
    for theirs, ours in zip(before, extractor(tiny.images(2, 12, 20), 50), strict=True):
        assert torch.equal(theirs, ours)


def test_an_adapter_adds_what_the_paper_says():
    """alpha / r * B A x, on the first block's values."""
    extractor = tiny.extractor(taps=[(0, 'modulated'), (0, 'value')])
    modulated, before = extractor(tiny.images(), 50)
    down, up = add_lora(extractor, r=2, alpha=6, targets=['to_v'])
    with torch.no_grad():
        up.normal_(generator=torch.Generator().manual_seed(0))
    added = extractor(tiny.images(), 50)[1] - before
    torch.testing.assert_close(added, torch.einsum('or,ri,bihw->bohw', up, down, modulated) * 3)


@pytest.mark.parametrize('taps, blocks', [([(1, 'hidden')], {'0.to_q', '0.to_v', '0.2', '1.to_q', '1.to_v', '1.2'}),
                                          ([(1, 'query')], {'0.to_q', '0.to_v', '0.2', '1.to_q'})])
def test_only_layers_on_the_way_to_the_taps_have_one(taps, blocks):
    """Else DDP would wait for gradients that do not come."""
    model = backbone(taps=taps, lora=LORA)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {f"{n.split('blocks.')[1][0]}.{n.split('.lora_')[0].rpartition('.')[2]}" for n in trained} == blocks
    model.train()(tiny.images())[0].square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained.keys()


def test_training_leaves_the_base_alone_and_a_checkpoint_carries_the_adapters():
    model = backbone(taps=[(1, 'hidden')], lora=LORA).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):  # at first only B has a gradient that is not zero
        optimizer.zero_grad()
        model(tiny.images())[0].square().sum().backward()
        optimizer.step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if '.lora_' in name}
    other = backbone(taps=[(1, 'hidden')], lora=LORA, seed=1)
    other.load_state_dict(after)
    assert torch.equal(other.eval()(tiny.images())[0], model.eval()(tiny.images())[0])
    assert not torch.equal(backbone(taps=[(1, 'hidden')])(tiny.images())[0], model(tiny.images())[0])


def test_bad_options_are_refused(monkeypatch):
    with pytest.raises(ValueError, match='leave out one of the two'):
        backbone(lora=LORA, frozen=False)
    with pytest.raises(ValueError, match=r"targets \['qkv'\].* attn1.to_q"):
        backbone(lora=dict(targets=['to_q', 'qkv']))
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ImportError, match=r"pip install 'mmaselect\[lora\]'"):
        backbone(lora=LORA)


@pytest.mark.parametrize('options', [dict(frozen=False), dict(lora=LORA)])
def test_checkpointing_gives_the_same_gradients_and_keeps_less(options):
    kept, gradients = [], []
    for with_cp in (False, True):
        model = backbone(taps=[(0, 'key'), (3, 'hidden')], with_cp=with_cp, **options).train()
        own, storages = {p.data_ptr() for p in model.parameters()}, {}

        def keep(tensor, own=own, storages=storages):
            if tensor.data_ptr() not in own:
                storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(m.square().sum() for m in model(tiny.images(2, 12, 20)))
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in storages.values()))
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert kept[1] < kept[0] / 3
