# A frozen DiT-XL/2 at its selected timestep under UPerNet, COCO-Stuff 164k, 512x512 crops, 80k iterations.
pretrained = 'facebook/DiT-XL-2-512'  # hub id, or the path of a folder with transformer/, vae/ and scheduler/

_base_ = [
    '_base_/models/upernet_dit.py', '_base_/datasets/coco_stuff164k.py',
    '_base_/schedules/adamw_80k.py', '_base_/mmseg_runtime.py'
]
model = dict(
    backbone=dict(pretrained=pretrained),
    decode_head=dict(num_classes=171),
    auxiliary_head=dict(num_classes=171))
