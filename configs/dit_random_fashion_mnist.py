# Control of dit_aselect_fashion_mnist.py: the same architecture, schedule and selection, with random weights.
_base_ = ['dit_aselect_fashion_mnist.py', '_base_/models/random_fashion_dit.py']
model = dict(backbone=_base_.random_backbone)
