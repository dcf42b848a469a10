"""DiT in Meta's layout, tiny: random weights by name, and a plain forward pass of them, written from the paper alone.

Nothing here comes from diffusers or from the package, since both are tested against it.
"""
import math

import torch
import torch.nn.functional as F


def table(width, rows, columns):
    """DiT's sin-cos positions (rows * columns, width), cell by cell: sines and cosines of x, then of y."""
    def encode(place):
        angles = [place / 10000 ** (4 * k / width) for k in range(width // 4)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor([encode(x) + encode(y) for y in range(rows) for x in range(columns)])


def weights(*, depth=3, width=16, patch=2, channels=4, out=8, side=4, classes=5, seed=0, device='cpu'):
    """A state dict in Meta's layout. Everything is random, the modulations too: at zero every block would be the identity."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        return torch.empty(shape, device='meta') if device == 'meta' else torch.randn(shape, generator=generator) * 0.2

    linears = {'t_embedder.mlp.0': (width, 256), 't_embedder.mlp.2': (width, width),
               'final_layer.linear': (patch * patch * out, width), 'final_layer.adaLN_modulation.1': (2 * width, width)}
    for index in range(depth):
        for name, shape in (('attn.qkv', (3 * width, width)), ('attn.proj', (width, width)), ('mlp.fc1', (4 * width, width)),
                            ('mlp.fc2', (width, 4 * width)), ('adaLN_modulation.1', (6 * width, width))):
            linears[f'blocks.{index}.{name}'] = shape
    state = {'pos_embed': table(width, side, side)[None], 'x_embedder.proj.weight': tensor(width, channels, patch, patch),
             'x_embedder.proj.bias': tensor(width), 'y_embedder.embedding_table.weight': tensor(classes + 1, width)}
    for name, shape in linears.items():
        state[f'{name}.weight'], state[f'{name}.bias'] = tensor(*shape), tensor(shape[0])
    return state


def forward(state, latent, time, heads):
    """The prediction (B, out, H, W) for latents (B, C, H, W) at the network's own times (B,), for the null class."""
    def linear(x, name):
        return x @ state[f'{name}.weight'].T + state[f'{name}.bias']

    def silu(x):
        return x * torch.sigmoid(x)

    def norm(x, shift, scale):  # LayerNorm without parameters, then the modulation
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred ** 2).mean(-1, keepdim=True) + 1e-6) * (1 + scale[:, None]) + shift[:, None]

    kernel = state['x_embedder.proj.weight']  # (D, C, p, p)
    patch, width = kernel.shape[-1], kernel.shape[0]
    height, breadth = latent.shape[-2] // patch, latent.shape[-1] // patch
    patches = latent.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, C, h, w, p, p)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, h * w, C * p * p)
    x = patches @ kernel.flatten(1).T + state['x_embedder.proj.bias'] + table(width, height, breadth).to(latent)

    # In float32, as in Meta's code: at t=999 its rounding turns the angles by up to 1e-4.
    frequencies = torch.exp(-math.log(10000) * torch.arange(128.) / 128)
    angles = time.float()[:, None] * frequencies
    embedded = torch.cat([angles.cos(), angles.sin()], 1).to(latent)  # (B, 256)
    embedded = linear(silu(linear(embedded, 't_embedder.mlp.0')), 't_embedder.mlp.2')
    condition = silu(embedded + state['y_embedder.embedding_table.weight'][-1])  # (B, D)

    depth = sum(key.endswith('attn.qkv.weight') for key in state)
    for index in range(depth):
        name = f'blocks.{index}'
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = linear(condition, f'{name}.adaLN_modulation.1').split(width, 1)
        qkv = linear(norm(x, shift, scale), f'{name}.attn.qkv')  # (B, N, 3 * D), q before k before v, heads within each
        q, k, v = (part.unflatten(2, (heads, -1)) for part in qkv.split(width, 2))  # (B, N, heads, D / heads)
        attention = torch.softmax(torch.einsum('bnhc,bmhc->bhnm', q, k) / math.sqrt(width // heads), -1)
        mixed = torch.einsum('bhnm,bmhc->bnhc', attention, v).flatten(2)  # (B, N, D)
        x = x + gate[:, None] * linear(mixed, f'{name}.attn.proj')
        inner = F.gelu(linear(norm(x, mlp_shift, mlp_scale), f'{name}.mlp.fc1'), approximate='tanh')
        x = x + mlp_gate[:, None] * linear(inner, f'{name}.mlp.fc2')

    shift, scale = linear(condition, 'final_layer.adaLN_modulation.1').split(width, 1)
    tokens = linear(norm(x, shift, scale), 'final_layer.linear')  # (B, h * w, p * p * out)
    tokens = tokens.unflatten(1, (height, breadth)).unflatten(3, (patch, patch, -1))  # (B, h, w, p, p, out)
    return torch.einsum('bhwpqc->bchpwq', tokens).flatten(4, 5).flatten(2, 3)  # (B, out, H, W)
