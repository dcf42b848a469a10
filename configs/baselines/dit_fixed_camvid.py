# The DiT at the timestep that DIFT takes for semantic correspondence (arXiv:2306.03881), t = 261, and not at a selected one.
# Others by `--cfg-options model.backbone.timestep=0`, or by `--timesteps 0 50 100` of tools/compare_labels.py.
_base_ = '../dit_aselect_camvid.py'
model = dict(backbone=dict(timestep=261))
