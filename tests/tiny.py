"""Small models of the true architecture. adaLN starts at random, not at zero: else every block is the identity."""
import torch
from diffusers import DDIMScheduler, DiTPipeline
from packaging.version import Version

from mmaselect.extract import Extractor

OLD_TORCH = Version(torch.__version__) < Version('2.4')  # as the stock stack needs
VAE = dict(block_out_channels=(8, 8), down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2,
           layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.5)
DIT = dict(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
           patch_size=2, num_embeds_ada_norm=5, norm_type='ada_norm_zero')
ARCH = dict(transformer=DIT, vae=VAE)  # 16 channels, 4 pixels per token
FLOW = dict(type='FlowMatchEulerDiscreteScheduler', shift=3.0)
SD3 = dict(type='SD3Transformer2DModel', num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4,
           num_layers=4, sample_size=8, patch_size=2, pos_embed_max_size=12, joint_attention_dim=12, caption_projection_dim=16,
           pooled_projection_dim=10)
SD35 = dict(SD3, qk_norm='rms_norm', dual_attention_layers=(0, 1))
PIXART = dict(type='PixArtTransformer2DModel', num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8,
              num_layers=4, sample_size=8, patch_size=2, cross_attention_dim=24, caption_channels=10)
TEXT_TO_IMAGE = dict(  # by the name of their family's file
    flux=dict(type='FluxTransformer2DModel', in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
              num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True,
              axes_dims_rope=(4, 6, 6)),
    flux2=dict(type='Flux2Transformer2DModel', in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
               num_attention_heads=2, joint_attention_dim=12, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4)),
    lumina2=dict(type='Lumina2Transformer2DModel', in_channels=4, sample_size=8, hidden_size=32, num_layers=2,
                 num_refiner_layers=2, num_attention_heads=4, num_kv_heads=2, multiple_of=8, axes_dim_rope=(4, 2, 2),
                 axes_lens=(30, 16, 16), cap_feat_dim=12),
    z_image=dict(type='ZImageTransformer2DModel', in_channels=4, dim=32, n_layers=2, n_refiner_layers=2, n_heads=2,
                 n_kv_heads=2, cap_feat_dim=12, axes_dims=[4, 6, 6], axes_lens=[80, 16, 16]),
    sana=dict(type='SanaTransformer2DModel', in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
              num_layers=4, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
              caption_channels=12, sample_size=8),
    qwen_image=dict(type='QwenImageTransformer2DModel', in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16,
                    num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(4, 6, 6)),
    prx=dict(type='PRXTransformer2DModel', in_channels=4, context_in_dim=12, hidden_size=32, mlp_ratio=2.0, num_heads=2,
             depth=4, axes_dim=[8, 8]))
TEXT_TO_IMAGE['flux2_klein'] = dict(TEXT_TO_IMAGE['flux2'], guidance_embeds=False)
LIGHTNING = dict(type='LightningDiTTransformer2DModel', num_attention_heads=2, attention_head_dim=8, in_channels=4,
                 out_channels=4, num_layers=4, ffn_dim=24, sample_size=8, num_embeds_ada_norm=5)
FLUX2_VAE = dict({key: value for key, value in VAE.items() if key != 'scaling_factor'}, type='AutoencoderKLFlux2')
PIXEL_ARCH = dict(transformer=dict(DIT, in_channels=3, out_channels=3))


def extractor(taps=((-1, 'hidden'),), arch=ARCH, seed=0, dtype=torch.float32):
    """A Extractor with random weights that depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Extractor.from_arch(arch, taps).to(dtype).eval()


def backbone(seed=0, **options):
    """A DiTBackbone of this config's options; of ARCH where no other weights are named."""
    from mmaselect.openmm import DiTBackbone  # tests without OpenMMLab take the rest of this file
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiTBackbone(**({} if 'pretrained' in options else dict(arch=ARCH)) | options)


def save(folder, seed=0):
    """Writes a checkpoint folder of the tiny DiT, with weights that depend on the seed alone, and gives its name."""
    made = extractor(seed=seed)
    DiTPipeline(made.family.model, made.encoder.vae, DDIMScheduler()).save_pretrained(folder)
    return str(folder)


def images(count=2, height=16, width=16, seed=0, dtype=torch.float32):
    """Random images (count, 3, height, width) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator, dtype=dtype) * 2 - 1


def latent(extractor, count=2, height=8, width=12, seed=0):
    """Random latents (count, C, height, width) in the extractor's dtype, without its VAE."""
    shape = count, extractor.family.in_channels, height, width
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(next(extractor.family.parameters()).dtype)
