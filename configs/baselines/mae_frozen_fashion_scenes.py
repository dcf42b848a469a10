# The ViT that mae_vit_fashion_pretrain.py pretrained, frozen as fashion_dit is.
_base_ = 'mae_finetuned_fashion_scenes.py'
model = dict(backbone=dict(frozen_stages=8))
