# The DiT that an hour of one core pretrained, in place of the one from a GPU.
_base_ = '../dit_aselect_cifar10.py'
width = 128
model = dict(
    backbone=dict(
        pretrained='{{ fileDirname }}/../cifar10_dit_small',
        taps=[(2, 'hidden'), (3, 'hidden'), (4, 'hidden'), (5, 'hidden')]),
    neck=dict(in_channels=width),
    head=dict(in_channels=4 * width * _base_.grid**2))
