# DiT-XL/2, fine-tuned at the timestep selected before and shared out among the GPUs, under UPerNet, ADE20K.
_base_ = ['dit_aselect_ade20k_finetune.py', '_base_/fsdp.py']
model = dict(backbone=dict(fold=False))  # FSDP keeps the parameters that it was given; folding would replace them
