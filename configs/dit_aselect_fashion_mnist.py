# A linear classifier on the frozen fashion_dit at its selected timestep: Fashion-MNIST, 2,000 labelled images.
pretrained = '{{ fileDirname }}/fashion_dit'

_base_ = ['_base_/models/linear_dit.py', '_base_/datasets/fashion_mnist.py', '_base_/mmpretrain_runtime.py']
width, grid = 128, 4
model = dict(
    # The last four blocks together, as in DINO's linear evaluation (arXiv:2104.14294, section 4.1).
    backbone=dict(pretrained=pretrained, taps=[(4, 'hidden'), (5, 'hidden'), (6, 'hidden'), (7, 'hidden')]),
    neck=dict(in_channels=width, num_taps=4, pool='grid', grid=grid),
    head=dict(in_channels=4 * width * grid**2, num_classes=10))

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=5e-3, weight_decay=1e-4))
param_scheduler = dict(type='CosineAnnealingLR', T_max=20, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=20, val_interval=20)
val_cfg = dict()
test_cfg = dict()
