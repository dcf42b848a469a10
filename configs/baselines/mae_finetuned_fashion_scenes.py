# The ViT that mae_vit_fashion_pretrain.py pretrained, trained on together with the head.
_base_ = 'vit_fashion_scenes.py'
checkpoint = '{{ fileDirname }}/mae_vit_fashion.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
