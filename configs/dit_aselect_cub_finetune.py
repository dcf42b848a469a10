# DiT-XL/2, fine-tuned at the timestep selected before, under a linear classifier, CUB-200-2011.
_base_ = ['dit_aselect_cub.py', '_base_/schedules/layer_decay_bf16.py']
model = dict(backbone=dict(frozen=False, with_cp=True))
optim_wrapper = dict(_delete_=True, **_base_.layer_decay)
