# ResNet-50 fine-tuned on CUB as mmpretrain does it, with its weights of ImageNet-21k and its schedule, on our 512x512 crops.
_base_ = ['../_base_/datasets/cub_200.py', '../_base_/schedules/cub_sgd_100e.py', '../_base_/mmpretrain_runtime.py']
checkpoint = 'https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_3rdparty-mill_in21k_20220331-faac000b.pth'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='ResNet', depth=50, init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=2048, num_classes=200, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
custom_hooks = []
