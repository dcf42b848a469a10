# A stock ViT of fashion_dit's size: 8 blocks of width 128 and, of a 64x64 image, 64 tokens, which the DiT has by a VAE of
# stride 4 and patches of 2. The adaLN of the DiT makes it the larger of the two.
vit = dict(
    _delete_=True,
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=128, num_layers=8, num_heads=4, feedforward_channels=512),
    img_size=64,
    patch_size=8,
    out_type='featmap')
