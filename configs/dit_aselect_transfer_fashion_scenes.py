# The demo: UPerNet on the frozen DiT that learned from photographs, at its selected timestep, on fashion scenes of 48x48 pixels
# (12x12 tokens).
_base_ = 'dit_aselect_fashion_scenes.py'
width = 256
model = dict(
    data_preprocessor=dict(size=(48, 48)),
    backbone=dict(pretrained='{{ fileDirname }}/cifar10_dit', recall=3),
    neck=dict(in_channels=width, scales=(1, 1, 1, 1), selection=dict(num_images=64)),  # minutes on two cores
    decode_head=dict(type='UPerHead', in_channels=[width] * 4, pool_scales=(1, 2, 3, 6)))

resize = dict(type='Resize', scale=(48, 48))  # of 64: the same mIoU in half the time
train_pipeline = [*_base_.train_pipeline[:2], resize, *_base_.train_pipeline[2:]]
test_pipeline = [_base_.test_pipeline[0], resize, *_base_.test_pipeline[1:]]  # before the masks, which stay whole
tta_pipeline = [_base_.tta_pipeline[0], resize, *_base_.tta_pipeline[1:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
