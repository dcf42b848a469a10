# As dit_concat_fashion_mnist.py, with blocks and timesteps fused by attention in every cell: the idea of DifFormer
# (arXiv:2311.17921) in a single layer.
_base_ = '../dit_aselect_fashion_mnist.py'
model = dict(
    backbone=dict(timestep=[50, 150, 250]),
    neck=dict(selection=dict(num_timesteps=3), fusion='attention'),
    head=dict(in_channels=128 * _base_.grid**2))
