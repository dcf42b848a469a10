# For a config that trains the DiT: learning rates that decay from the head to the patches, in bfloat16.
# With the 21 trained blocks of the segmentation configs, the patch embedding is left 0.9 ** 22 = 0.1 of the head's rate.
layer_decay = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale=dict(enabled=False),  # bfloat16 has the range of float32
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmaselect.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9))
