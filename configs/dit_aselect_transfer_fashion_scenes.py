# The frozen DiT that learned from photographs, on garments: UPerNet on fashion scenes of 48x48 pixels (12x12 tokens).
_base_ = 'dit_aselect_fashion_scenes.py'
width = 256
model = dict(
    data_preprocessor=dict(size=(48, 48)),
    backbone=dict(pretrained='{{ fileDirname }}/cifar10_dit'),
    neck=dict(in_channels=width, scales=(1, 1, 1, 1)),
    decode_head=dict(type='UPerHead', in_channels=[width] * 4, pool_scales=(1, 2, 3, 6)))

scale = (48, 48)  # of 64: the same mIoU in half the time
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=scale),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale),
    dict(type='LoadAnnotations'),  # after Resize, so that masks stay whole
    dict(type='PackSegInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
