# A linear classifier on a frozen ViT-B/16 of ImageNet-21k, as mmpretrain probes MAE: the protocol of dit_aselect_cub.py with
# another backbone. The checkpoint was fine-tuned on ImageNet-1k at 384x384; its positions are interpolated to 512x512.
checkpoint = ('https://mmassets.onedl.ai/mmclassification/v0/vit/finetune/'
              'vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth')

_base_ = '../dit_aselect_cub.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='b',
        img_size=512,
        patch_size=16,
        frozen_stages=12,
        out_type='cls_token',
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    neck=dict(_delete_=True, type='ClsBatchNormNeck', input_features=768),
    head=dict(in_channels=768))
custom_hooks = []
