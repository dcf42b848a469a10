default_scope = 'mmpretrain'
# Without these, a package that is not installed shows as a bare KeyError.
custom_imports = dict(imports=['mmaselect.openmm'], allow_failed_imports=False)
custom_hooks = [dict(type='mmaselect.AutoTimestepHook')]
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Two are kept: the older one is removed before the newer is written, so with one a kill in between would leave none.
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
