# A linear classifier on a frozen DiT-XL/2 at its selected timestep, Food-101, 512x512 crops, 100 epochs.
pretrained = 'facebook/DiT-XL-2-512'  # hub id, or the path of a folder with transformer/, vae/ and scheduler/

_base_ = [
    '_base_/models/linear_dit.py', '_base_/datasets/food101.py',
    '_base_/schedules/adamw_100e.py', '_base_/mmpretrain_runtime.py'
]
model = dict(backbone=dict(pretrained=pretrained), head=dict(num_classes=101))
