# A frozen DiT-XL/2 at its selected timestep under SegFormer's head, ADE20K, 512x512 crops, 160k iterations.
pretrained = 'facebook/DiT-XL-2-512'  # hub id, or the path of a folder with transformer/, vae/ and scheduler/

_base_ = [
    '_base_/models/segformer_dit.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_160k.py', '_base_/mmseg_runtime.py'
]
model = dict(backbone=dict(pretrained=pretrained))
