# FCN on the features of four blocks of a DiT, joined: the sizes of DiT-XL/2.
_base_ = ['upernet_dit.py']
model = dict(
    neck=dict(output='map'),
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=4 * _base_.width,
        in_index=0,
        channels=512,
        num_convs=2,
        concat_input=True,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None)
