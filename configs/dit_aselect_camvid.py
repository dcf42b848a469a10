# UPerNet on a frozen DiT at its selected timestep: CamVid, 367 labelled street scenes.
pretrained = '{{ fileDirname }}/cifar10_dit'

_base_ = ['_base_/models/segformer_small_dit.py', '_base_/datasets/camvid.py', '_base_/schedules/adamw_small.py',
          '_base_/mmseg_runtime.py']
width = 256
model = dict(
    data_preprocessor=dict(size=(120, 160)),
    backbone=dict(pretrained=pretrained, taps=[(4, 'hidden'), (5, 'hidden'), (6, 'hidden'), (7, 'hidden')], recall=4),
    neck=dict(in_channels=width, scales=(1, 1, 1, 1), selection=dict(num_images=64, image_size=64)),  # minutes on two cores
    decode_head=dict(type='UPerHead', in_channels=[width] * 4, pool_scales=(1, 2, 3, 6)))

iterations = 2000
param_scheduler = dict(end=iterations)
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    checkpoint=dict(interval=500),
    visualization=dict(draw=True, interval=20))
