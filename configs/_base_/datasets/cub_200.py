# Caltech-UCSD Birds-200-2011, 200 classes, in mmpretrain's layout: data/CUB_200_2011/{images,*.txt}.
_base_ = ['fine_grained_512.py']
data_root = 'data/CUB_200_2011'
train_dataloader = dict(dataset=dict(type='CUB', data_root=data_root, split='train'))
val_dataloader = dict(dataset=dict(type='CUB', data_root=data_root, split='test'))
test_dataloader = val_dataloader
