# ResNet-50 of ImageNet-1k under UPerNet, fine-tuned: mmseg's own model; data, heads and schedule of dit_aselect_ade20k.py, where
# mmseg trains this one with SGD.
_base_ = '../dit_aselect_ade20k.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        depth=50,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        contract_dilation=True,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://resnet50_v1c')),
    neck=None,  # its four stages are a pyramid
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024))
custom_hooks = []
