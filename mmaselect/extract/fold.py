"""A DiT at a chosen timestep is a ViT: adaLN's shift, scale and gate (Peebles and Xie 2023, arXiv:2212.09748, section 3.2) are
then constants, that is an affine LayerNorm and a LayerScale (Touvron et al. 2021, arXiv:2103.17239).

``fold`` evaluates them once and leaves out what computed them, and all that no tap depends on.
"""
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel

from .families.dit import DiT
from .families.folded_dit import FoldedDiT


def foldable(family):
    """Whether ``fold`` takes this family."""
    return isinstance(family, DiT)


@torch.no_grad()
def fold(family, process, timesteps, taps, *, into='norm'):
    """The ViT that a DiT is at a timestep, with fused queries, keys and values.

    Exact but for rounding. Left out are the embedders of timestep and label, the modulation, the output layer, the blocks
    after the last tap, and the parts of the last tap's block that it does not need.

    Args:
        family (DiT): Not changed; the result has weights of its own.
        process (NoiseProcess): Of the checkpoint.
        timesteps (Sequence[int]): Training timesteps, 0 the cleanest.
        taps (Sequence[tuple[int, str]]): As ``taps.resolve`` returns them.
        into (str): Where shift, scale and gate go. 'norm': LayerNorm and LayerScale. 'linear': the linear layers next to them,
            for one timestep; of the taps this leaves 'query', 'key', 'value' and 'hidden'.

    Returns:
        FoldedDiT

    Raises:
        ValueError: Not a DiT, or an option or tap that does not go together with the others.
    """
    if not foldable(family):
        raise ValueError(f'{type(family).__name__} cannot be folded: run it unfolded')
    folded = blank(family.config, timesteps, taps, into=into, pos_scale=family.pos_scale)
    model = family.model
    times = process.model_time[list(timesteps)].to(model.device, torch.float32)  # (T,)
    labels = torch.full_like(times, family.config.num_embeds_ada_norm, dtype=torch.long)  # the null class
    state = {'patch.weight': model.pos_embed.proj.weight, 'patch.bias': model.pos_embed.proj.bias}
    for index, block in enumerate(folded.blocks):
        norm = model.transformer_blocks[index].norm1
        embedding = norm.emb(times, labels, hidden_dtype=norm.linear.weight.dtype)  # (T, D)
        constants = norm.linear(F.silu(embedding)).chunk(6, dim=1)  # six (T, D)
        layers = _layers(model.transformer_blocks[index], block.rows)
        part = _into_linear(layers, constants, block.rows) if into == 'linear' else {**_into_norm(constants), **layers}
        state.update({f'blocks.{index}.{name}': value for name, value in part.items()})
    # Of ``state`` what the taps need. A copy, since the DiT may go on being used.
    folded.load_state_dict({name: state[name].clone() for name in folded.state_dict()}, assign=True)
    return folded.train(family.training)


def blank(config, timesteps, taps, **options):
    """A FoldedDiT without memory for its weights, to be given some by ``load_state_dict(assign=True)`` or ``to_empty``."""
    with torch.device('meta'):
        return FoldedDiT(config, timesteps, taps, **options)


def dit_of(config, state):
    """The DiT family with a copy of the weights ``state``: what its ``state_dict`` gave.

    Raises:
        RuntimeError: Keys or shapes are not those of the config.
    """
    with torch.random.fork_rng():  # its first weights are random
        family = DiT(DiTTransformer2DModel.from_config(config))
    family.to(next(iter(state.values())).dtype).load_state_dict(state)
    return family


def is_folded(state):
    """Whether a family's ``state_dict`` is that of a FoldedDiT."""
    return 'patch.weight' in state


def _layers(block, rows):
    """The linear layers of diffusers' block under our names; ``rows`` is 'qkv' or the part of it that is wanted."""
    attention = block.attn1
    qkv = [dict(q=attention.to_q, k=attention.to_k, v=attention.to_v)[letter] for letter in rows]
    layers = dict(proj=attention.to_out[0], fc1=block.ff.net[0].proj, fc2=block.ff.net[2])
    state = {f'{name}.{kind}': getattr(layer, kind) for name, layer in layers.items() for kind in ('weight', 'bias')}
    if qkv:
        state[f'{rows}.weight'] = torch.cat([layer.weight for layer in qkv])  # (3 * D, D)
        if qkv[0].bias is not None:
            state[f'{rows}.bias'] = torch.cat([layer.bias for layer in qkv])  # (3 * D,)
    return state


def _into_norm(constants):
    """norm(x) * (1 + scale) + shift is an affine LayerNorm; x + gate * branch is a LayerScale."""
    state = {}
    for place, (shift, scale, gate, mlp_shift, mlp_scale, mlp_gate) in enumerate(zip(*constants, strict=True)):  # each (D,)
        values = {'norm1.weight': 1 + scale, 'norm1.bias': shift, 'gate1': gate,
                  'norm2.weight': 1 + mlp_scale, 'norm2.bias': mlp_shift, 'gate2': mlp_gate}
        state.update({f'modulation.{place}.{name}': value for name, value in values.items()})
    return state


def _into_linear(layers, constants, rows):
    """W (n * (1 + scale) + shift) + b = (W * (1 + scale)) n + (W shift + b), and gate * (W x + b) = (gate * W) x + gate * b."""
    state = dict(layers)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (value[0] for value in constants)  # each (D,)
    for name, before, factor in ((rows, shift, scale), ('fc1', mlp_shift, mlp_scale)):
        if f'{name}.weight' in layers:
            weight = layers[f'{name}.weight']
            state[f'{name}.weight'] = weight * (1 + factor)
            state[f'{name}.bias'] = weight @ before + layers.get(f'{name}.bias', 0)
    for name, factor in (('proj', gate), ('fc2', mlp_gate)):
        state[f'{name}.weight'] = factor[:, None] * layers[f'{name}.weight']
        state[f'{name}.bias'] = factor * layers[f'{name}.bias']
    return state
