# As dit_fixed_fashion_mnist.py, with features averaged over eight draws of the noise as in DIFT (arXiv:2306.03881).
_base_ = 'dit_fixed_fashion_mnist.py'
model = dict(backbone=dict(noise_draws=8))
