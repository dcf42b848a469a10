# A frozen DiT-XL/2 at its selected timestep under UPerNet, Cityscapes, 512x1024 crops, 80k iterations.
pretrained = 'facebook/DiT-XL-2-512'  # hub id, or the path of a folder with transformer/, vae/ and scheduler/

_base_ = [
    '_base_/models/upernet_dit.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/adamw_80k.py', '_base_/mmseg_runtime.py'
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(pretrained=pretrained),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
    test_cfg=dict(crop_size=_base_.crop_size, stride=(341, 683)))
