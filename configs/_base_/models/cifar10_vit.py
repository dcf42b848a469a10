# A stock ViT of cifar10_dit_small's size, on images of 32x32 in patches of 4. Its adaLN makes that DiT the larger of the two.
vit = dict(
    _delete_=True,
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=128, num_layers=6, num_heads=2, feedforward_channels=512),
    img_size=32,
    patch_size=4,
    out_type='featmap')
