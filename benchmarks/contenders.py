"""Who runs in ``forward.py``: ways from a latent to a tap, and the least that any of them can take."""
import tempfile
from dataclasses import dataclass

import sizes
import timing
import torch
import torch.nn.functional as F

from mmaselect.extract import Extractor, seeded_noise
from mmaselect.extract.export import load_timm, write_timm

TIMESTEP = 100


@dataclass(frozen=True)
class Setting:
    """What is timed, and where. ``backend`` is torch.compile's, ``attention`` one of ``timing.ATTENTION``."""
    size: str
    tokens: int
    block: int
    tap: str  # 'hidden' or 'query'
    batch: int
    device: str = 'cpu'
    dtype: str = 'float32'
    attention: str = 'any'
    backend: str = 'inductor'

    @property
    def options(self):
        return dict(device=self.device, dtype=getattr(torch, self.dtype))

    def extractor(self, taps):
        torch.manual_seed(0)
        made = Extractor.from_arch(sizes.arch(self.size, self.tokens, vae=False), taps)
        return made.to(**self.options).eval().requires_grad_(False)

    def latent(self):
        """Latents (B, 4, H, W), and the noise (1, 4, H, W)."""
        edge = sizes.PATCH * sizes.side(self.tokens)
        latents = torch.stack([seeded_noise((4, edge, edge), index, 'latent') for index in range(self.batch)])
        return latents.to(**self.options), seeded_noise((4, edge, edge), 0)[None].to(**self.options)


def hooked(model, block, tap):
    """What one writes without this project: diffusers' whole forward pass (noisy, t (B,)), and a hook at the tap, (B, N, D)."""
    found, block = [], model.transformer_blocks[block]
    module = {'hidden': block, 'query': block.attn1.to_q}[tap]
    module.register_forward_hook(lambda module, args, output: found.append(output))

    def forward(noisy, t):
        found.clear()
        model(noisy, timestep=t, class_labels=torch.full_like(t, model.config.num_embeds_ada_norm))
        return found[0]
    return forward


def by_hand(setting):
    """Calls diffusers' modules one by one, up to the tap: what reading its own forward has to be as fast as."""
    extractor = setting.extractor([(setting.block, setting.tap)])
    family, model, (latent, noise) = extractor.family, extractor.family.model, setting.latent()
    embed, t = family.overrides()[model.pos_embed], torch.tensor([TIMESTEP])
    condition = dict(timestep=torch.full((setting.batch,), TIMESTEP, device=setting.device),
                     class_labels=torch.full((setting.batch,), model.config.num_embeds_ada_norm, device=setting.device))

    def run():
        x = embed(extractor.process.add(latent, t, noise))
        for block in model.transformer_blocks[:setting.block]:
            x = block(x, **condition)
        block = model.transformer_blocks[setting.block]
        x = block(x, **condition) if setting.tap == 'hidden' else block.attn1.to_q(
            block.norm1(x, **condition, hidden_dtype=x.dtype)[0])
        return on_grid(x, (sizes.side(setting.tokens),) * 2)
    return run, model.parameters()


def on_grid(tokens, grid):
    """(B, N, D) -> (B, D, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def diffusers(setting):
    whole = setting.extractor([(setting.block, setting.tap)])
    latent, noise = setting.latent()
    forward, t = hooked(whole.family.model, setting.block, setting.tap), torch.full((setting.batch,), TIMESTEP)
    on_device, grid = t.to(setting.device), (sizes.side(setting.tokens),) * 2
    return lambda: on_grid(forward(whole.process.add(latent, t, noise), on_device), grid), whole.family.model.parameters()


def unfolded(setting):
    return _ours(setting, setting.extractor([(setting.block, setting.tap)]))


def folded(setting):
    return _ours(setting, setting.extractor([(setting.block, setting.tap)]).fold([TIMESTEP]))


def compiled(setting):
    extractor = setting.extractor([(setting.block, setting.tap)]).fold([TIMESTEP])
    torch.compiler.reset()  # a second setting would be compiled for any shape
    extractor.compile(backend=setting.backend)
    return _ours(setting, extractor)


def _ours(setting, extractor):
    latent, noise = setting.latent()
    return lambda: extractor.features(latent, TIMESTEP, noise)[0], extractor.family.parameters()


def timm(setting):
    """Has no tap inside a block: it runs the whole block, and a hook takes the query."""
    extractor = setting.extractor([(-1, 'hidden')])
    with tempfile.TemporaryDirectory() as folder:
        write_timm(extractor, folder, TIMESTEP)
        vit = load_timm(folder).to(**setting.options).requires_grad_(False)
    latent, noise = setting.latent()
    found, t = [], torch.tensor([TIMESTEP])
    vit.blocks[setting.block].attn.qkv.register_forward_hook(lambda module, args, output: found.append(output))

    def run():
        found.clear()
        maps, = vit.forward_intermediates(extractor.process.add(latent, t, noise), indices=[setting.block], stop_early=True,
                                          intermediates_only=True)  # (B, D, h, w)
        return maps if setting.tap == 'hidden' else on_grid(found[0].chunk(3, -1)[0], maps.shape[-2:])
    return run, vit.parameters()


def products(setting):
    """The matrix products of the linear layers, into memory that is there, and the attentions; nothing between them."""
    _, width, heads = sizes.SIZES[setting.size]
    rows, patch = setting.batch * setting.tokens, 4 * sizes.PATCH**2

    def weights(*shapes):
        return [torch.randn(*shape, **setting.options) for shape in shapes]

    embed = weights((width, patch))
    blocks = [(weights((3 * width, width)), weights((width, width), (4 * width, width), (width, 4 * width)))
              for _ in range(setting.block + 1)]
    if setting.tap == 'query':
        blocks[-1] = weights((width, width)), []
    inputs = {size: torch.randn(rows, size, **setting.options) for size in (patch, width, 4 * width)}
    outputs = {size: torch.empty(rows, size, **setting.options) for size in (width, 3 * width, 4 * width)}
    query, key, value = torch.randn(3, setting.batch, heads, setting.tokens, width // heads, **setting.options)

    def multiply(layers):
        for weight in layers:  # (out, in), as nn.Linear has it
            torch.mm(inputs[weight.shape[1]], weight.t(), out=outputs[weight.shape[0]])

    def run():
        multiply(embed)
        for projections, rest in blocks:
            multiply(projections)
            if rest:
                F.scaled_dot_product_attention(query, key, value)
                multiply(rest)
    return run, [*embed, *(weight for pair in blocks for layers in pair for weight in layers)]


CONTENDERS = {'matrix products': products, 'diffusers, hooks': diffusers, 'by hand': by_hand, 'unfolded': unfolded,
              'folded': folded, 'folded, compiled': compiled, 'timm ViT': timm}


def build(name, setting):
    """What to call, and how many parameters it has."""
    step, parameters = CONTENDERS[name](setting)

    def run():
        with torch.no_grad(), timing.attention(setting.attention):
            return step()
    return run, sizes.count(parameters)


def build_run(name, setting):
    return build(name, setting)[0]
