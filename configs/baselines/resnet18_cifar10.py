# ResNet-18 in place of the DiT, trained from nothing by the recipe that is usual on CIFAR-10: stem for images of 32x32, SGD with
# momentum, crops of padded images and flips (mmpretrain's), a cosine. Sixty epochs of all images.
_base_ = '../dit_aselect_cifar10.py'
model = dict(
    backbone=dict(_delete_=True, type='mmpretrain.ResNet_CIFAR', depth=18),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(in_channels=512))
custom_hooks = []
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='RandomCrop', crop_size=32, padding=4),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs')
    ]))
iterations = 30000
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = dict(T_max=iterations, by_epoch=False)
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=iterations, val_interval=iterations)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1000), logger=dict(interval_exp_name=100000))
log_processor = dict(by_epoch=False)
