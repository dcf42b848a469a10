# Stanford Cars, 196 classes, in mmpretrain's layout: data/Stanford_Cars/{car_ims,cars_annos.mat}.
_base_ = ['fine_grained_512.py']
data_root = 'data/Stanford_Cars'
train_dataloader = dict(dataset=dict(type='StanfordCars', data_root=data_root, split='train'))
val_dataloader = dict(dataset=dict(type='StanfordCars', data_root=data_root, split='test'))
test_dataloader = val_dataloader
