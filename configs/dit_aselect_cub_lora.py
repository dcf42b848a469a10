# DiT-XL/2, adapted by LoRA at the timestep selected before, under a linear classifier, CUB-200-2011.
# Needs peft: pip install 'mmaselect[lora]'.
_base_ = ['dit_aselect_cub.py']
model = dict(backbone=dict(lora=dict(r=16, alpha=16, targets=['to_q', 'to_v']), with_cp=True))
# In bfloat16, which has the range of float32 and so needs no scaling of the loss.
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
