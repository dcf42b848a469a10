# The DiT that learned from photographs, trained on at its selected timestep: Fashion-MNIST, 2,000 labelled images of 32x32 pixels.
_base_ = ['dit_aselect_transfer_fashion_mnist.py', '_base_/schedules/layer_decay_bf16.py']
grid, epochs = 4, 15
model = dict(
    backbone=dict(frozen=False),
    neck=dict(grid=grid),
    head=dict(in_channels=4 * _base_.width * grid**2))

augmented = [*_base_.pipeline[:3], dict(type='torchvision/RandomCrop', size=32, padding=3), *_base_.pipeline[3:]]
train_dataloader = dict(dataset=dict(pipeline=augmented))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    constructor=_base_.layer_decay.constructor,
    paramwise_cfg=dict(layer_decay_rate=0.75))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=epochs - 1, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=epochs, val_interval=5)
