# The DiT that learned from photographs, frozen, on garments: Fashion-MNIST, 2,000 labelled images of 32x32 pixels.
_base_ = 'dit_aselect_fashion_mnist.py'
width, grid = 256, 8  # each of its 8x8 tokens by itself: garments lie all alike
model = dict(
    backbone=dict(pretrained='{{ fileDirname }}/cifar10_dit'),
    neck=dict(in_channels=width, grid=grid),
    head=dict(in_channels=4 * width * grid**2))

pipeline = [*_base_.pipeline[:2], dict(type='torchvision/Resize', size=32), *_base_.pipeline[3:]]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
