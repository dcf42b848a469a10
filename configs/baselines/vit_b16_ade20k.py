# ViT-B/16 of ImageNet-21k under UPerNet, fine-tuned: stock parts of mmseg and mmpretrain; data, head and schedule of
# dit_aselect_ade20k.py.
checkpoint = ('https://mmassets.onedl.ai/mmclassification/v0/vit/finetune/'
              'vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth')

_base_ = '../dit_aselect_ade20k.py'
width = 768
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='b',
        img_size=512,
        patch_size=16,
        out_indices=[2, 5, 8, 11],
        out_type='featmap',
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    neck=dict(
        _delete_=True,
        type='Feature2Pyramid',
        embed_dim=width,
        rescales=[4, 2, 1, 0.5],
        norm_cfg=dict(type='SyncBN', requires_grad=True)),
    decode_head=dict(in_channels=[width] * 4),
    auxiliary_head=dict(in_channels=width))
custom_hooks = []
