# fashion_dit at the timestep that DIFT takes for semantic correspondence (arXiv:2306.03881), t = 261, and not at a selected one.
_base_ = '../dit_aselect_fashion_scenes.py'
model = dict(backbone=dict(timestep=261))
