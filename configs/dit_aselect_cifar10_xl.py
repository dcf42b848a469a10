# A linear classifier on a frozen DiT-XL/2 at its selected timestep, CIFAR-10 enlarged to 256x256: the setting in which DDAE's
# repository (arXiv:2303.09769) reports 85.73 % for a linear probe on these weights. The head is linear on the mean over the map.
_base_ = ['_base_/models/linear_dit.py', '_base_/datasets/cifar10.py', '_base_/mmpretrain_runtime.py']
model = dict(
    backbone=dict(pretrained='facebook/DiT-XL-2-256', taps=[(13, 'hidden')]),
    head=dict(num_classes=10))
resize = dict(type='Resize', scale=(256, 256), interpolation='bicubic')
train_dataloader = dict(
    batch_size=128,
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'), resize,
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs')
    ]))
val_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]))
test_dataloader = val_dataloader

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.0))
param_scheduler = dict(type='CosineAnnealingLR', T_max=15, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=15, val_interval=5)
val_cfg = dict()
test_cfg = dict()
