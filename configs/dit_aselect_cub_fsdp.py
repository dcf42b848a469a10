# DiT-XL/2, fine-tuned at the timestep selected before and shared out among the GPUs, under a linear classifier, CUB-200-2011.
_base_ = ['dit_aselect_cub_finetune.py', '_base_/fsdp.py']
model = dict(backbone=dict(fold=False))  # FSDP keeps the parameters that it was given; folding would replace them
train_dataloader = dict(batch_size=4)  # on each of four GPUs
