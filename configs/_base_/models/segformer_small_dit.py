# SegFormer's MLP head on a DiT of width 128, for small images and a machine without a GPU.
_base_ = ['upernet_dit.py']
norm_cfg = dict(type='BN', requires_grad=True)
width = 128
model = dict(
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
