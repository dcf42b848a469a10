# The demo DiT's architecture with random weights, on the latents of the demo's trained VAE: the control of the demo.
random_backbone = dict(
    pretrained=None,
    arch=dict(
        transformer=dict(
            num_attention_heads=4, attention_head_dim=32, num_layers=8, in_channels=4, out_channels=4, sample_size=16,
            patch_size=2, num_embeds_ada_norm=1, norm_type='ada_norm_zero'),
        vae='{{ fileDirname }}/../../fashion_dit'))
