"""Sizes of the models that are timed; weights are random, which costs the same."""
import math

# Blocks, channels and heads: DiT (arXiv:2212.09748, table 1). The last one is for --quick.
SIZES = dict(S=(12, 384, 6), B=(12, 768, 12), L=(24, 1024, 16), XL=(28, 1152, 16), tiny=(4, 16, 2))
# Stable Diffusion's, which the latent DiTs of the literature share: 8 pixels per latent pixel.
VAE = dict(block_out_channels=(128, 256, 512, 512), down_block_types=('DownEncoderBlock2D',) * 4,
           up_block_types=('UpDecoderBlock2D',) * 4, layers_per_block=2, latent_channels=4, sample_size=256)
TINY_VAE = dict(VAE, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, sample_size=32)
PATCH = 2
PIXELS = 8 * PATCH  # per token


def side(tokens):
    """Tokens along each side of a square grid.

    Raises:
        SystemExit: There is no square of so many.
    """
    if math.isqrt(tokens) ** 2 != tokens:
        raise SystemExit(f'{tokens} tokens are no square: take one of 64, 256, 1024, ...')
    return math.isqrt(tokens)


def arch(size, tokens, *, vae, channels=4):
    """What ``Extractor.from_arch`` takes for a DiT that was trained at so many tokens; without a VAE its images are the
    latents, with so many channels."""
    depth, width, heads = SIZES[size]
    transformer = dict(num_layers=depth, num_attention_heads=heads, attention_head_dim=width // heads, in_channels=channels,
                       out_channels=2 * channels, sample_size=PATCH * side(tokens), patch_size=PATCH, num_embeds_ada_norm=1000,
                       norm_type='ada_norm_zero')
    return dict(transformer=transformer, **(dict(vae=TINY_VAE if size == 'tiny' else VAE) if vae else {}))


def name(size):
    return f'DiT-{size}/{PATCH}'


def middle(size):
    """The block in the middle, counted from 0."""
    return SIZES[size][0] // 2 - 1


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)
