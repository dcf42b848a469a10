# A frozen DiT-XL/2 at its selected timestep under UPerNet, Pascal Context, 480x480 crops, 80k iterations.
pretrained = 'facebook/DiT-XL-2-512'  # hub id, or the path of a folder with transformer/, vae/ and scheduler/

_base_ = [
    '_base_/models/upernet_dit.py', '_base_/datasets/pascal_context.py',
    '_base_/schedules/adamw_80k.py', '_base_/mmseg_runtime.py'
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(pretrained=pretrained),
    decode_head=dict(num_classes=60),
    auxiliary_head=dict(num_classes=60),
    test_cfg=dict(crop_size=_base_.crop_size, stride=(320, 320)))
