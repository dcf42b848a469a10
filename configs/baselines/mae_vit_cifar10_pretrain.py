# Masked autoencoding (arXiv:2111.06377), as mmpretrain has it, on the 50,000 training images of CIFAR-10: a ViT of the size of
# cifar10_dit_small, for as many images as that saw.
# tools/model_converters/publish_backbone.py makes mae_vit_cifar10.pth beside this file of the last checkpoint.
_base_ = 'mae_vit_fashion_pretrain.py'
model = dict(
    backbone=dict(  # the sizes of ../_base_/models/cifar10_vit.py
        arch=dict(embed_dims=128, num_layers=6, num_heads=2, feedforward_channels=512), img_size=32, patch_size=4),
    neck=dict(patch_size=4, embed_dim=128, num_patches=64),
    head=dict(patch_size=4))
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/cifar10',
        data_prefix='train',
        with_label=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs')
        ]))

iterations = 5500
param_scheduler = [
    dict(type='LinearLR', start_factor=0.005, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', eta_min=5e-5, by_epoch=False, begin=200, end=iterations)
]
train_cfg = dict(by_epoch=False, max_iters=iterations)
