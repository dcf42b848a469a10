import pytest
import tiny
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmaselect.openmm import DiTBackbone

LR, DECAY = 1e-2, 0.5


class Model(nn.Module):
    """A fine-tuned DiT of which two of four blocks are used, and a head with all that does not decay."""

    def __init__(self):
        super().__init__()
        self.backbone = DiTBackbone(arch=tiny.ARCH, taps=[(1, 'hidden')], timestep=50, frozen=False)
        self.neck = nn.BatchNorm2d(16)
        self.head = nn.ModuleDict(dict(norm=nn.LayerNorm(16), linear=nn.Linear(16, 3), attention=nn.MultiheadAttention(16, 2)))
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.gamma = nn.Parameter(torch.ones(16))

    def get_layer_depth(self, name):
        raise AssertionError("mmpretrain's ImageClassifier has this as well: the backbone is to be asked")


def groups(model, **paramwise):
    """Name -> (learning rate, weight decay) of what the optimizer holds."""
    options = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=LR, weight_decay=0.1), paramwise_cfg=paramwise,
                   constructor='mmaselect.LayerDecayOptimWrapperConstructor')
    optimizer = build_optim_wrapper(model, options).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], (group['lr'], group['weight_decay'])) for group in optimizer.param_groups for p in group['params']]
    assert len(found) == len(dict(found))
    return dict(found)


def test_rates_and_decays_of_a_fine_tuned_dit():
    model = Model()
    found = groups(model, layer_decay_rate=DECAY)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in found if 'vae' in name or 'blocks.2' in name]
    dit = 'backbone.extractor.family.'
    expected = {
        f'{dit}patch.weight': (LR * DECAY**3, 0.1),
        f'{dit}patch.bias': (LR * DECAY**3, 0.0),
        f'{dit}blocks.0.qkv.weight': (LR * DECAY**2, 0.1),
        f'{dit}blocks.0.modulation.0.norm1.weight': (LR * DECAY**2, 0.0),
        f'{dit}blocks.1.modulation.0.gate2': (LR * DECAY, 0.0),
        f'{dit}blocks.1.fc2.weight': (LR * DECAY, 0.1),
        f'{dit}blocks.1.fc2.bias': (LR * DECAY, 0.0),
        'neck.weight': (LR, 0.0),
        'head.norm.weight': (LR, 0.0),
        'head.linear.weight': (LR, 0.1),
        'head.linear.bias': (LR, 0.0),
        'head.attention.in_proj_weight': (LR, 0.1),
        'head.attention.in_proj_bias': (LR, 0.0),
        'token': (LR, 0.0),
        'gamma': (LR, 0.0),
    }
    for name, (rate, decay) in expected.items():
        assert found[name] == (pytest.approx(rate), decay), name
    assert sorted({rate for rate, _ in found.values()}) == pytest.approx([LR * DECAY**k for k in (3, 2, 1, 0)])


@pytest.mark.parametrize('name, layer', [
    ('backbone.extractor.family.model.pos_embed.proj.weight', 0),
    ('backbone.extractor.family.model.transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight', 1),
    ('backbone.extractor.family.model.transformer_blocks.1.attn1.to_q.weight', 2),
    ('backbone.extractor.family.blocks.1.modulation.0.gate1', 2),
    ('backbone._fsdp_wrapped_module.extractor.family.model.transformer_blocks.0.ff.net.2.weight', 1),
    ('backbone.vit.patch.weight', 0),
    ('backbone.vit.blocks.0.qkv.weight', 1),
    ('backbone.extractor.encoder.vae.encoder.down_blocks.1.weight', 0),
    ('neck.levels.0.weight', 3),
    ('decode_head.blocks.0.weight', 3),
])
def test_layers_of_names(name, layer):
    backbone = DiTBackbone(arch=tiny.ARCH, taps=[(1, 'hidden')])
    assert backbone.get_layer_depth(name, 'backbone.') == (layer, 4)


def test_two_kinds_of_blocks_count_on():
    """FLUX's single-stream blocks come behind the double-stream ones."""
    flux = dict(type='FluxTransformer2DModel', patch_size=1, in_channels=16, num_layers=2, num_single_layers=3,
                attention_head_dim=16, num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10,
                axes_dims_rope=(4, 6, 6))
    backbone = DiTBackbone(arch=dict(transformer=flux, vae=tiny.VAE, scheduler=tiny.FLOW))
    for name, layer in (('single_transformer_blocks.2.attn.to_q', 5), ('transformer_blocks.1.ff.net.2', 2), ('x_embedder', 0)):
        assert backbone.get_layer_depth(f'extractor.family.model.{name}.weight') == (layer, 7)


def test_two_digits():
    backbone = DiTBackbone(arch=dict(tiny.ARCH, transformer=dict(tiny.DIT, num_layers=13)))
    assert backbone.get_layer_depth('extractor.family.model.transformer_blocks.12.attn1.to_q.weight') == (13, 15)


@pytest.mark.parametrize('paramwise', [dict(layer_decay_rate=0.0), dict(layer_decay_rate=0.9, norm_decay_mult=0.0), dict(lr=1)])
def test_bad_options_are_refused(paramwise):
    with pytest.raises(ValueError, match='takes layer_decay_rate'):
        groups(nn.Linear(2, 2), **paramwise)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match='Sequential has get_layer_depth'):
        groups(nn.Sequential(nn.Linear(2, 2)), layer_decay_rate=0.9)
