# Oxford Flowers, 102 classes, in mmpretrain's layout: data/Flowers102/{jpg,imagelabels.mat,setid.mat}.
_base_ = ['fine_grained_512.py']
data_root = 'data/Flowers102'
train_dataloader = dict(dataset=dict(type='Flowers102', data_root=data_root, split='trainval'))
val_dataloader = dict(dataset=dict(type='Flowers102', data_root=data_root, split='test'))
test_dataloader = val_dataloader
