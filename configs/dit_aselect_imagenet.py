# A linear classifier on a frozen DiT-XL/2 at its selected timestep, ImageNet-1k, 256x256 crops, 90 epochs.
pretrained = 'facebook/DiT-XL-2-256'  # hub id, or the path of a folder with transformer/, vae/ and scheduler/

_base_ = [
    '_base_/models/linear_dit.py', '_base_/datasets/imagenet.py',
    '_base_/schedules/lars_90e.py', '_base_/mmpretrain_runtime.py'
]
model = dict(backbone=dict(pretrained=pretrained), head=dict(num_classes=1000))
