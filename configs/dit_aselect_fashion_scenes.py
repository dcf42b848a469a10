# SegFormer's head on the frozen fashion_dit at its selected timestep; minutes on two CPU cores.
pretrained = '{{ fileDirname }}/fashion_dit'

_base_ = ['_base_/models/segformer_small_dit.py', '_base_/datasets/fashion_scenes.py', '_base_/schedules/adamw_small.py',
          '_base_/mmseg_runtime.py']
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(pretrained=pretrained, taps=[(2, 'hidden'), (4, 'hidden'), (5, 'hidden'), (6, 'hidden')]))

iterations = 1200
param_scheduler = dict(end=iterations)
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    checkpoint=dict(interval=400),
    visualization=dict(draw=True, interval=4))
