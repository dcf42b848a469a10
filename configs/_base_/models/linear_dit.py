# A linear classifier on the pooled features of a DiT: the sizes of DiT-XL/2.
width = 1152
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[127.5, 127.5, 127.5],  # to [-1, 1], which the VAE expects
        std=[127.5, 127.5, 127.5],
        to_rgb=True),
    backbone=dict(type='mmaselect.DiTBackbone', taps=[(14, 'hidden')]),
    neck=dict(
        type='mmaselect.AutoTimestepNeck',
        in_channels=width,
        output='vector',
        pool='mean',
        norm='channel',
        selection=dict(num_images=256)),
    head=dict(type='LinearClsHead', in_channels=width, num_classes=200, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
