# SegFormer's MLP head on a DiT: the sizes of DiT-XL/2.
_base_ = ['upernet_dit.py']
model = dict(
    decode_head=dict(
        _delete_=True,
        type='SegformerHead',
        in_channels=[_base_.width] * 4,
        in_index=[0, 1, 2, 3],
        channels=768,  # as SegFormer-B2 to B5 have (arXiv:2105.15203, table 6)
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None)
