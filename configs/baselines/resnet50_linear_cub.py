# A linear classifier on a frozen ResNet-50 of ImageNet-21k: the protocol of dit_aselect_cub.py with another backbone.
checkpoint = 'https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_3rdparty-mill_in21k_20220331-faac000b.pth'

_base_ = '../dit_aselect_cub.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ResNet',
        depth=50,
        frozen_stages=4,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    # Without trained weights, as linear probes have it and AutoTimestepNeck's norm='channel' does.
    neck=[dict(type='GlobalAveragePooling'), dict(type='ClsBatchNormNeck', input_features=2048)],
    head=dict(in_channels=2048))
custom_hooks = []
