# Food-101, 101 classes, in mmpretrain's layout: data/food-101/{images,meta}.
_base_ = ['fine_grained_512.py']
data_root = 'data/food-101'
train_dataloader = dict(dataset=dict(type='Food101', data_root=data_root, split='train'))
val_dataloader = dict(dataset=dict(type='Food101', data_root=data_root, split='test'))
test_dataloader = val_dataloader
