# ResNet-18 in place of fashion_dit, trained from scratch with the head: the same data, head and schedule.
_base_ = '../dit_aselect_fashion_scenes.py'
model = dict(
    backbone=dict(_delete_=True, type='mmpretrain.ResNet', depth=18, out_indices=(0, 1, 2, 3)),
    neck=None,  # its four stages are a pyramid
    decode_head=dict(in_channels=[64, 128, 256, 512]))
custom_hooks = []
