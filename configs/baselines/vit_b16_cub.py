# ViT-B/16 fine-tuned on CUB: mmpretrain's schedule, with gradients clipped to 1 as ViT's authors do (arXiv:2010.11929, table 4).
_base_ = ['../_base_/datasets/cub_200.py', '../_base_/schedules/cub_sgd_100e.py', '../_base_/mmpretrain_runtime.py']
checkpoint = ('https://mmassets.onedl.ai/mmclassification/v0/vit/finetune/'
              'vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b.pth')
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    backbone=dict(
        type='VisionTransformer',
        arch='b',
        img_size=512,
        patch_size=16,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone')),
    neck=None,
    head=dict(type='LinearClsHead', in_channels=768, num_classes=200, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
custom_hooks = []
