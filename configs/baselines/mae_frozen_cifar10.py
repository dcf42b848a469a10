# The ViT that mae_vit_cifar10_pretrain.py pretrained on as many images as dit_small_cifar10.py's DiT saw, frozen as that is: the
# same size, data, neck, head and schedule.
_base_ = ['dit_small_cifar10.py', '../_base_/models/cifar10_vit.py']
checkpoint = '{{ fileDirname }}/mae_vit_cifar10.pth'
model = dict(backbone=dict(
    **_base_.vit,
    out_indices=[block for block, _ in _base_.model.backbone.taps],  # the blocks that the DiT's features come from
    frozen_stages=_base_.vit.arch.num_layers,
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))
custom_hooks = []
