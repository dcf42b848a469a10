# A frozen DiT-XL/2 at its selected timestep under UPerNet, Pascal VOC 2012 + aug, 512x512 crops, 40k iterations.
pretrained = 'facebook/DiT-XL-2-512'  # hub id, or the path of a folder with transformer/, vae/ and scheduler/

_base_ = [
    '_base_/models/upernet_dit.py', '_base_/datasets/pascal_voc12_aug.py',
    '_base_/schedules/adamw_40k.py', '_base_/mmseg_runtime.py'
]
model = dict(
    backbone=dict(pretrained=pretrained),
    decode_head=dict(num_classes=21),
    auxiliary_head=dict(num_classes=21))
