# The head of dit_aselect_fashion_mnist.py, trained on cached features: the same, without the DiT. First
#     python tools/cache_features.py configs/dit_aselect_fashion_mnist.py
# What it saves fits the config with the DiT: tools/test.py configs/dit_aselect_fashion_mnist.py CHECKPOINT
_base_ = '../dit_aselect_fashion_mnist.py'
features = 'work_dirs/features/dit_aselect_fashion_mnist'
model = dict(
    data_preprocessor=dict(_delete_=True, type='ClsDataPreprocessor'),  # features pass as they are
    backbone=dict(_delete_=True, type='mmaselect.CachedFeatures', cache=features))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmaselect.LoadFeatures', cache=f'{features}/train'),
    dict(type='PackInputs')
]))
val_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmaselect.LoadFeatures', cache=f'{features}/val'),
    dict(type='PackInputs')
]))
test_dataloader = val_dataloader
