# resnet18_cifar10.py for few labels, here 40 images of each class: shorter, with a stem that halves the images twice, so that it
# takes minutes on CPUs.
_base_ = 'resnet18_cifar10.py'
iterations = 400
model = dict(backbone=dict(_delete_=True, type='mmpretrain.ResNet', depth=18))
train_dataloader = dict(batch_size=50, dataset=dict(indices=400))
optim_wrapper = dict(optimizer=dict(lr=0.05))
param_scheduler = dict(T_max=iterations)
train_cfg = dict(max_iters=iterations, val_interval=iterations)
