# Masked autoencoding (arXiv:2111.06377), as mmpretrain has it, of the ViT that stands against fashion_dit: the same unlabelled
# images as the DiT's pretraining, whole and not augmented as there, and as many, 10,000 batches of 64. Peak and course of the
# learning rate are the DiT's too. `make mae` runs it and writes the encoder to mae_vit_fashion.pth.
_base_ = ['../_base_/models/fashion_vit.py', '../_base_/mmpretrain_runtime.py']
custom_hooks = []
model = dict(
    type='MAE',
    data_preprocessor=dict(
        type='SelfSupDataPreprocessor', mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    backbone=dict(
        type='MAEViT',  # with fixed sine-cosine positions
        arch=_base_.vit.arch,
        img_size=_base_.vit.img_size,
        patch_size=_base_.vit.patch_size,
        mask_ratio=0.75),
    neck=dict(
        type='MAEPretrainDecoder',
        num_patches=64,
        patch_size=8,
        embed_dim=128,
        decoder_embed_dim=64,
        decoder_depth=2,
        decoder_num_heads=2),
    head=dict(
        type='MAEPretrainHead', norm_pix=True, patch_size=8, loss=dict(type='PixelReconstructionLoss', criterion='L2')),
    init_cfg=[
        dict(type='Xavier', layer='Linear', distribution='uniform'),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0)
    ])

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        ignore_keys=['classes'],  # the scenes have none
        datasets=[
            dict(
                type='CustomDataset',
                data_root='data/fashion_scenes',
                data_prefix='img_dir/pretrain',
                with_label=False,
                pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]),
            dict(
                type='FashionMNIST',
                data_root='data/fashion_mnist',
                split='train',
                pipeline=[
                    dict(type='NumpyToPIL'),
                    dict(type='torchvision/Grayscale', num_output_channels=3),
                    dict(type='torchvision/Resize', size=64),
                    dict(type='PILToNumpy'),
                    dict(type='PackInputs')
                ])
        ]))

iterations = 10000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(
        pos_embed=dict(decay_mult=0.0), mask_token=dict(decay_mult=0.0), cls_token=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.005, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', eta_min=5e-5, by_epoch=False, begin=200, end=iterations)
]
train_cfg = dict(by_epoch=False, max_iters=iterations)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)
