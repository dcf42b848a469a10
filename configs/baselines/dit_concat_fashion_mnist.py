# fashion_dit with the features of three timesteps side by side, those of DDPM-seg (arXiv:2112.03126), and not of a selected one.
_base_ = '../dit_aselect_fashion_mnist.py'
model = dict(
    backbone=dict(timestep=[50, 150, 250]),
    neck=dict(selection=dict(num_timesteps=3), fusion='concat'),
    head=dict(in_channels=3 * 4 * 128 * _base_.grid**2))
