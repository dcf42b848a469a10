# DiT-XL/2, fine-tuned at the timestep selected before, under UPerNet, ADE20K.
_base_ = ['dit_aselect_ade20k.py', '_base_/schedules/layer_decay_bf16.py']
model = dict(backbone=dict(frozen=False, with_cp=True))
optim_wrapper = dict(_delete_=True, **_base_.layer_decay)
