# The linear probe of MAE (arXiv:2111.06377, appendix A.1): LARS, base learning rate 0.1 per 256 images, 90 epochs, 10 of warm-up.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='LARS', lr=0.4, weight_decay=0.0, momentum=0.9),
    # Any paramwise_cfg leaves frozen parameters out of the optimizer.
    paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=80, by_epoch=True, begin=10, end=90, eta_min=0.0, convert_to_iter_based=True)
]
train_cfg = dict(by_epoch=True, max_epochs=90, val_interval=10)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)  # 8 GPUs with 128 images each
