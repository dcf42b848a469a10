# For a config that trains the DiT: PyTorch's FSDP, which shares out weights, gradients and optimizer state among the GPUs.
# The model is one unit, gathered once per step. Smaller units would not do: of a DiT's blocks only parts are called, of a decode
# head only its loss, and the backbone runs once per window of a sliding inference, whose number differs between the GPUs.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        sharding_strategy='SHARD_GRAD_OP',  # the weights stay gathered from the forward to the backward pass
        use_orig_params=True),  # frozen and trained parameters, and learning rates per layer, within one unit
    state_dict_cfg='full')  # checkpoints as those of one GPU
