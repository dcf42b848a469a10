# fashion_dit's architecture, its VAE included, with random weights: its control.
# The stricter one, a random transformer on the latents of the trained VAE, is
# --cfg-options model.backbone.arch.vae=configs/fashion_dit
random_backbone = dict(
    pretrained=None,
    arch=dict(
        transformer=dict(
            num_attention_heads=4, attention_head_dim=32, num_layers=8, in_channels=4, out_channels=4, sample_size=16,
            patch_size=2, num_embeds_ada_norm=1, norm_type='ada_norm_zero'),
        vae=dict(
            block_out_channels=(16, 32, 64), down_block_types=('DownEncoderBlock2D', ) * 3,
            up_block_types=('UpDecoderBlock2D', ) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=8,
            sample_size=64,
            scaling_factor=4.0)))  # latents of about unit deviation, as the trained VAE's are
