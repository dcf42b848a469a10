# ResNet-18 in place of fashion_dit, trained from scratch with the linear classifier: the same data and schedule.
_base_ = '../dit_aselect_fashion_mnist.py'
model = dict(
    backbone=dict(_delete_=True, type='mmpretrain.ResNet', depth=18),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(in_channels=512))
custom_hooks = []
