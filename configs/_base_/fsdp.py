# For a config that trains the DiT: PyTorch's FSDP, which shares out weights, gradients and optimizer state among the GPUs.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        sharding_strategy='FULL_SHARD',
        use_orig_params=True,  # frozen and trained parameters, and learning rates per layer, within one shard
        auto_wrap_policy='mmaselect.wrap_backbone'),
    state_dict_cfg='full')  # checkpoints as those of one GPU
