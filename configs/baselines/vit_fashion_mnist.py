# A ViT of fashion_dit's size in its place, trained from scratch: the same data, neck, linear classifier and schedule.
_base_ = ['../dit_aselect_fashion_mnist.py', '../_base_/models/fashion_vit.py']
model = dict(backbone=dict(**_base_.vit, out_indices=[4, 5, 6, 7]))  # the blocks that the DiT's features come from
custom_hooks = []
