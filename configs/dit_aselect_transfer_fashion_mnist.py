# The DiT that learned from photographs, frozen, on garments: Fashion-MNIST, 2,000 labelled images enlarged to 48x48 pixels, and
# one block in the middle.
_base_ = 'dit_aselect_fashion_mnist.py'
width, grid = 256, 12  # each of its 12x12 tokens by itself: garments lie all alike
model = dict(
    backbone=dict(pretrained='{{ fileDirname }}/cifar10_dit', taps=[(3, 'hidden')]),
    neck=dict(in_channels=width, num_taps=1, grid=grid),
    head=dict(in_channels=width * grid**2))

pipeline = [*_base_.pipeline[:2], dict(type='torchvision/Resize', size=48), *_base_.pipeline[3:]]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
