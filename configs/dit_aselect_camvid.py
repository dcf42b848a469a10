# SegFormer's head on a frozen DiT at its selected timestep: CamVid, 367 labelled street scenes.
pretrained = '{{ fileDirname }}/cifar10_dit'

_base_ = ['_base_/models/segformer_small_dit.py', '_base_/datasets/camvid.py', '_base_/schedules/adamw_small.py',
          '_base_/mmseg_runtime.py']
model = dict(
    data_preprocessor=dict(size=(120, 160)),
    backbone=dict(pretrained=pretrained, taps=[(2, 'hidden'), (3, 'hidden'), (4, 'hidden'), (5, 'hidden')]))

iterations = 2000
param_scheduler = dict(end=iterations)
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    checkpoint=dict(interval=500),
    visualization=dict(draw=True, interval=20))
