# Oxford-IIIT Pets, 37 classes, in mmpretrain's layout: data/Oxford-IIIT_Pets/{images,annotations}.
_base_ = ['fine_grained_512.py']
data_root = 'data/Oxford-IIIT_Pets'
train_dataloader = dict(dataset=dict(type='OxfordIIITPet', data_root=data_root, split='trainval'))
val_dataloader = dict(dataset=dict(type='OxfordIIITPet', data_root=data_root, split='test'))
test_dataloader = val_dataloader
