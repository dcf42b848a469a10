# A linear classifier on a frozen DiT at its selected timestep: CIFAR-10, all 50,000 labelled images.
pretrained = '{{ fileDirname }}/cifar10_dit'

_base_ = ['_base_/models/linear_dit.py', '_base_/datasets/cifar10.py', '_base_/mmpretrain_runtime.py']
width, grid = 256, 4
model = dict(
    backbone=dict(pretrained=pretrained, taps=[(4, 'hidden'), (5, 'hidden'), (6, 'hidden'), (7, 'hidden')]),
    neck=dict(in_channels=width, num_taps=4, pool='grid', grid=grid),
    head=dict(in_channels=4 * width * grid**2, num_classes=10))

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = dict(type='CosineAnnealingLR', T_max=20, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=20)
val_cfg = dict()
test_cfg = dict()
