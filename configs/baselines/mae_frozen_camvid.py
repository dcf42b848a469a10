# The ViT that mae_vit_cifar10_pretrain.py pretrained, frozen as the DiT is: the same data, neck, head and schedule.
_base_ = ['../dit_aselect_camvid.py', '../_base_/models/cifar10_vit.py']
checkpoint = '{{ fileDirname }}/mae_vit_cifar10.pth'
width = _base_.vit.arch.embed_dims
model = dict(
    backbone=dict(
        **_base_.vit,
        out_indices=[2, 3, 4, 5],
        frozen_stages=_base_.vit.arch.num_layers,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(in_channels=width),
    decode_head=dict(in_channels=[width] * 4))
custom_hooks = []
