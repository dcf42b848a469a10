# A linear classifier on a frozen DiT-XL/2 at its selected timestep, CUB-200-2011, 512x512 crops, 100 epochs.
pretrained = 'facebook/DiT-XL-2-512'  # hub id, or the path of a folder with transformer/, vae/ and scheduler/

_base_ = ['_base_/models/linear_dit.py', '_base_/datasets/cub_200.py', '_base_/mmpretrain_runtime.py']
model = dict(backbone=dict(pretrained=pretrained))

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = dict(type='CosineAnnealingLR', T_max=100, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=10)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=16)
