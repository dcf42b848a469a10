"""Weights in the layout of LightningDiT's published files, and its forward pass by the formulae of its paper and code."""
import math

import meta_dit
import torch
import torch.nn.functional as F


def turns(head, rows, columns, base):
    """exp(i angle) of the rotary positions (rows * columns, head / 2), cell by cell, of a grid stretched over ``base``^2."""
    def encode(place):
        return [place / 10000 ** (4 * k / head) for k in range(head // 4)]
    cells = [encode(y * base / rows) + encode(x * base / columns) for y in range(rows) for x in range(columns)]
    return torch.polar(torch.ones((), dtype=torch.float64), torch.tensor(cells, dtype=torch.float64))


def weights(*, depth=3, heads=2, head=8, patch=1, channels=6, side=4, classes=5, inner=20, qk_norm=False, shifts=True, seed=0):
    """A state dict as ``ema`` of a published file has it. Everything that is learned is random."""
    generator, width = torch.Generator().manual_seed(seed), heads * head

    def tensor(*shape):
        return torch.randn(shape, generator=generator) * 0.3

    turn = turns(head, side, side, side)
    state = {'pos_embed': meta_dit.table(width, side, side)[None],
             'x_embedder.proj.weight': tensor(width, channels, patch, patch), 'x_embedder.proj.bias': tensor(width),
             'y_embedder.embedding_table.weight': tensor(classes + 1, width),
             'feat_rope.freqs_cos': turn.real.repeat_interleave(2, 1).float(),
             'feat_rope.freqs_sin': turn.imag.repeat_interleave(2, 1).float(), 'final_layer.norm_final.weight': 1 + tensor(width)}
    linears = {'t_embedder.mlp.0': (width, 256), 't_embedder.mlp.2': (width, width),
               'final_layer.linear': (patch * patch * channels, width), 'final_layer.adaLN_modulation.1': (2 * width, width)}
    for index in range(depth):
        for name, shape in (('attn.qkv', (3 * width, width)), ('attn.proj', (width, width)), ('mlp.w12', (2 * inner, width)),
                            ('mlp.w3', (width, inner)), ('adaLN_modulation.1', ((6 if shifts else 4) * width, width))):
            linears[f'blocks.{index}.{name}'] = shape
        norms = dict(norm1=width, norm2=width, **({'attn.q_norm': head, 'attn.k_norm': head} if qk_norm else {}))
        for name, size in norms.items():
            state[f'blocks.{index}.{name}.weight'] = 1 + tensor(size)
    for name, shape in linears.items():
        state[f'{name}.weight'], state[f'{name}.bias'] = tensor(*shape), tensor(shape[0])
    return state


def forward(state, latent, time):
    """The velocity (B, C, H, W) for latents (B, C, H, W) at the network's own times (B,), 1 the image, for the null class.

    ``state`` and ``latent`` are of one dtype.
    """
    def linear(x, name):
        return x @ state[f'{name}.weight'].T + state[f'{name}.bias']

    def silu(x):
        return x * torch.sigmoid(x)

    def norm(x, name):
        return x / torch.sqrt((x ** 2).mean(-1, keepdim=True) + 1e-6) * state[f'{name}.weight']

    kernel = state['x_embedder.proj.weight']  # (D, C, p, p)
    patch, width, head = kernel.shape[-1], kernel.shape[0], state['feat_rope.freqs_cos'].shape[1]
    base = math.isqrt(state['pos_embed'].shape[1])
    rows, columns = (side // patch for side in latent.shape[-2:])
    patches = F.unfold(latent, patch, stride=patch).transpose(1, 2)  # (B, h * w, C * p * p)
    places = torch.tensor([[y * base / rows, x * base / columns] for y in range(rows) for x in range(columns)],
                          dtype=torch.float64)
    rates = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = (places[:, side, None] * rates for side in (0, 1))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1).float()  # which the files hold in float32
    x = patches @ kernel.flatten(1).T + state['x_embedder.proj.bias'] + table.to(latent)

    angle = time.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(128.) / 128)  # in float32, as in the code
    embedded = torch.cat([angle.cos(), angle.sin()], 1).to(latent)  # (B, 256)
    embedded = linear(silu(linear(embedded, 't_embedder.mlp.0')), 't_embedder.mlp.2')
    condition = silu(embedded + state['y_embedder.embedding_table.weight'][-1])  # (B, D)

    turn = turns(head, rows, columns, base)[:, None]  # (N, 1, head / 2)
    for index in range(sum(key.endswith('attn.qkv.weight') for key in state)):
        name = f'blocks.{index}'
        parts = linear(condition, f'{name}.adaLN_modulation.1')[:, None].split(width, -1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts if len(parts) == 6 else (0, *parts[:2], 0, *parts[2:])
        q, k, v = (part.unflatten(2, (-1, head)) for part in
                   linear(norm(x, f'{name}.norm1') * (1 + scale) + shift, f'{name}.attn.qkv').split(width, 2))
        if f'{name}.attn.q_norm.weight' in state:
            q, k = norm(q, f'{name}.attn.q_norm'), norm(k, f'{name}.attn.k_norm')
        q, k = (torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).double().contiguous()) * turn).flatten(-2)
                for part in (q, k))  # pairs of neighbours turn
        attention = torch.softmax(torch.einsum('bnhc,bmhc->bhnm', q, k) / math.sqrt(head), -1).to(latent)
        x = x + gate * linear(torch.einsum('bhnm,bmhc->bnhc', attention, v).flatten(2), f'{name}.attn.proj')
        gated, other = linear(norm(x, f'{name}.norm2') * (1 + mlp_scale) + mlp_shift, f'{name}.mlp.w12').chunk(2, -1)
        x = x + mlp_gate * linear(silu(gated) * other, f'{name}.mlp.w3')

    shift, scale = linear(condition, 'final_layer.adaLN_modulation.1')[:, None].split(width, -1)
    tokens = linear(norm(x, 'final_layer.norm_final') * (1 + scale) + shift, 'final_layer.linear')  # (B, h * w, p * p * C)
    tokens = tokens.unflatten(1, (rows, columns)).unflatten(3, (patch, patch, -1))  # (B, h, w, p, p, C)
    return torch.einsum('bhwpqc->bchpwq', tokens).flatten(4, 5).flatten(2, 3)


def encode(state, images):
    """The mean of the latents of a VAE in the layout of the latent diffusion code, with attention where ``state`` has it."""
    def conv(x, name, **options):
        return F.conv2d(x, state[f'{name}.weight'], state[f'{name}.bias'], **options)

    def norm(x, name):
        return F.group_norm(x, 32, state[f'{name}.weight'], state[f'{name}.bias'], 1e-6)

    def resnet(x, name):
        inner = conv(F.silu(norm(x, f'{name}.norm1')), f'{name}.conv1', padding=1)
        inner = conv(F.silu(norm(inner, f'{name}.norm2')), f'{name}.conv2', padding=1)
        return inner + (conv(x, f'{name}.nin_shortcut') if f'{name}.nin_shortcut.weight' in state else x)

    def attention(x, name):
        q, k, v = (conv(norm(x, f'{name}.norm'), f'{name}.{letter}').flatten(2) for letter in 'qkv')  # (B, C, N)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), -1)  # (B, N, N)
        return x + conv((v @ weights.transpose(1, 2)).unflatten(2, x.shape[-2:]), f'{name}.proj_out')

    x, level = conv(images, 'encoder.conv_in', padding=1), 0
    while f'encoder.down.{level}.block.0.conv1.weight' in state:
        name, block = f'encoder.down.{level}', 0
        while f'{name}.block.{block}.conv1.weight' in state:
            x = resnet(x, f'{name}.block.{block}')
            if f'{name}.attn.{block}.q.weight' in state:
                x = attention(x, f'{name}.attn.{block}')
            block += 1
        if f'{name}.downsample.conv.weight' in state:
            x = conv(F.pad(x, (0, 1, 0, 1)), f'{name}.downsample.conv', stride=2)
        level += 1
    x = resnet(attention(resnet(x, 'encoder.mid.block_1'), 'encoder.mid.attn_1'), 'encoder.mid.block_2')
    return conv(conv(F.silu(norm(x, 'encoder.norm_out')), 'encoder.conv_out', padding=1), 'quant_conv').chunk(2, 1)[0]


def vae_weights(*, channels=6, width=32, multiples=(1, 1, 2), blocks=1, seed=0):
    """A state dict as VA-VAE's published file has it; attention at the lowest resolution. Images are of 3 channels."""
    generator, state = torch.Generator().manual_seed(seed), {'loss.logvar': torch.zeros(())}

    def conv(name, out, into, side=3):
        scale = 1 / math.sqrt(into * side * side)
        state[f'{name}.weight'] = torch.randn(out, into, side, side, generator=generator) * scale
        state[f'{name}.bias'] = torch.randn(out, generator=generator) * 0.2

    def norm(name, size):
        state[f'{name}.weight'] = 1 + torch.randn(size, generator=generator) * 0.2
        state[f'{name}.bias'] = torch.randn(size, generator=generator) * 0.2

    def resnet(name, out, into):
        norm(f'{name}.norm1', into)
        conv(f'{name}.conv1', out, into)
        norm(f'{name}.norm2', out)
        conv(f'{name}.conv2', out, out)
        if out != into:
            conv(f'{name}.nin_shortcut', out, into, 1)

    def attention(name, size):
        norm(f'{name}.norm', size)
        for part in ('q', 'k', 'v', 'proj_out'):
            conv(f'{name}.{part}', size, size, 1)

    last, top = len(multiples) - 1, width * multiples[-1]
    for part, levels, extra, resample in (('encoder', range(last + 1), 0, 'down'), ('decoder', range(last, -1, -1), 1, 'up')):
        size = width if part == 'encoder' else top
        conv(f'{part}.conv_in', size, 3 if part == 'encoder' else channels)
        for level in levels:
            for block in range(blocks + extra):
                resnet(f'{part}.{resample}.{level}.block.{block}', width * multiples[level], size)
                size = width * multiples[level]
                if level == last:
                    attention(f'{part}.{resample}.{level}.attn.{block}', size)
            if level != levels[-1]:
                conv(f'{part}.{resample}.{level}.{resample}sample.conv', size, size)
        for block in (1, 2):
            resnet(f'{part}.mid.block_{block}', top, top)
        attention(f'{part}.mid.attn_1', top)
        norm(f'{part}.norm_out', size)
        conv(f'{part}.conv_out', 2 * channels if part == 'encoder' else 3, size)
    conv('quant_conv', 2 * channels, 2 * channels, 1)
    conv('post_quant_conv', channels, channels, 1)
    return state
