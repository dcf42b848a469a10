# fashion_dit at a timestep that was found good for probes of a U-Net on ImageNet (arXiv:2307.08702, figure 1), t = 90, and not at
# a selected one. DDAE (arXiv:2303.09769) likewise fixes one, which it searches for each model.
_base_ = '../dit_aselect_fashion_mnist.py'
model = dict(backbone=dict(timestep=90))
