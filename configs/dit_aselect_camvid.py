# SegFormer's head on a frozen DiT at its selected timestep: CamVid, 367 labelled street scenes.
pretrained = '{{ fileDirname }}/cifar10_dit'

_base_ = ['_base_/models/upernet_dit.py', '_base_/datasets/camvid.py', '_base_/mmseg_runtime.py']
norm_cfg = dict(type='BN', requires_grad=True)
width = 128
model = dict(
    data_preprocessor=dict(size=(120, 160)),
    backbone=dict(pretrained=pretrained, taps=[(2, 'hidden'), (3, 'hidden'), (4, 'hidden'), (5, 'hidden')]),
    neck=dict(in_channels=width, norm='channel'),
    decode_head=dict(
        _delete_=True,
        type='SegformerHead',
        in_channels=[width] * 4,
        in_index=[0, 1, 2, 3],
        channels=64,
        dropout_ratio=0.0,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None,
    test_cfg=dict(_delete_=True, mode='whole'))

iterations = 2000
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01))
param_scheduler = dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=iterations, by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    checkpoint=dict(interval=500),
    visualization=dict(draw=True, interval=20))
