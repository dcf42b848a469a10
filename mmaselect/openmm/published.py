"""Sizes of published checkpoints, for which no file need be at hand: the config.json of their parts on the Hugging Face hub."""
SD_VAE = dict(
    block_out_channels=(128, 256, 512, 512), down_block_types=('DownEncoderBlock2D', ) * 4,
    up_block_types=('UpDecoderBlock2D', ) * 4, layers_per_block=2, latent_channels=4, sample_size=256)
VAE_16 = dict(SD_VAE, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)  # of SD3, FLUX.1 and many after them
DC_AE = dict(
    type='AutoencoderDC', latent_channels=32, encoder_block_types=('ResBlock', ) * 3 + ('EfficientViTBlock', ) * 3,
    decoder_block_types=('ResBlock', ) * 3 + ('EfficientViTBlock', ) * 3, encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
    decoder_layers_per_block=(3, ) * 6, encoder_qkv_multiscales=((), (), (), (5, ), (5, ), (5, )),
    decoder_qkv_multiscales=((), (), (), (5, ), (5, ), (5, )), downsample_block_type='conv', upsample_block_type='interpolate')
VA_VAE = dict(
    SD_VAE, latent_channels=32, block_out_channels=(128, 128, 256, 256, 512),
    down_block_types=(*('DownEncoderBlock2D', ) * 4, 'AttnDownEncoderBlock2D'),
    up_block_types=('AttnUpDecoderBlock2D', *('UpDecoderBlock2D', ) * 4))
FLOW = dict(type='FlowMatchEulerDiscreteScheduler', shift=3.0)
DIT_XL_2 = dict(
    num_attention_heads=16, attention_head_dim=72, num_layers=28, in_channels=4, out_channels=8, patch_size=2,
    num_embeds_ada_norm=1000, norm_type='ada_norm_zero')
SD3_MEDIUM = dict(
    type='SD3Transformer2DModel', num_attention_heads=24, attention_head_dim=64, num_layers=24, in_channels=16, out_channels=16,
    patch_size=2, sample_size=128, pos_embed_max_size=192, joint_attention_dim=4096, caption_projection_dim=1536,
    pooled_projection_dim=2048)
FLUX2_KLEIN_4B = dict(  # github.com/black-forest-labs/flux2, src/flux2/model.py: Klein4BParams
    type='Flux2Transformer2DModel', num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680,
    guidance_embeds=False)
PIXART = dict(type='PixArtTransformer2DModel', caption_channels=4096)
# The rest have the default sizes of their classes.
PUBLISHED = {
    **{f'facebook/DiT-XL-2-{side}': dict(transformer=dict(DIT_XL_2, sample_size=side // 8), vae=SD_VAE) for side in (256, 512)},
    'stabilityai/stable-diffusion-3-medium-diffusers': dict(transformer=SD3_MEDIUM, vae=VAE_16, scheduler=FLOW),
    'black-forest-labs/FLUX.1-dev': dict(
        transformer=dict(type='FluxTransformer2DModel', guidance_embeds=True), vae=VAE_16, scheduler=FLOW),
    'black-forest-labs/FLUX.2-dev': dict(
        transformer=dict(type='Flux2Transformer2DModel'), vae=dict(type='AutoencoderKLFlux2'), scheduler=FLOW),
    'black-forest-labs/FLUX.2-klein-base-4B': dict(
        transformer=FLUX2_KLEIN_4B, vae=dict(type='AutoencoderKLFlux2'), scheduler=FLOW),
    'Alpha-VLLM/Lumina-Image-2.0': dict(
        transformer=dict(type='Lumina2Transformer2DModel', cap_feat_dim=2304), vae=VAE_16, scheduler=FLOW),
    'Tongyi-MAI/Z-Image-Turbo': dict(transformer=dict(type='ZImageTransformer2DModel'), vae=VAE_16, scheduler=FLOW),
    'Efficient-Large-Model/Sana_1600M_1024px_diffusers': dict(
        transformer=dict(type='SanaTransformer2DModel'), vae=DC_AE, scheduler=FLOW),
    'Qwen/Qwen-Image': dict(
        transformer=dict(type='QwenImageTransformer2DModel'), vae=dict(type='AutoencoderKLQwenImage'), scheduler=FLOW),
    'Photoroom/prx-512-t2i-sft': dict(transformer=dict(type='PRXTransformer2DModel'), vae=VAE_16, scheduler=FLOW),
    'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS': dict(transformer=PIXART, vae=SD_VAE),
    # What the converter makes of LightningDiT's files, where the documentation has it write.
    'checkpoints/lightningdit_xl_256': dict(
        transformer=dict(type='LightningDiTTransformer2DModel'), vae=VA_VAE, scheduler=FLOW)}
