# FGVC Aircraft, 100 variants, in mmpretrain's layout: data/fgvc-aircraft-2013b/data/{images,images_variant_*.txt}.
_base_ = ['fine_grained_512.py']
data_root = 'data/fgvc-aircraft-2013b'
train_dataloader = dict(dataset=dict(type='FGVCAircraft', data_root=data_root, split='trainval'))
val_dataloader = dict(dataset=dict(type='FGVCAircraft', data_root=data_root, split='test'))
test_dataloader = val_dataloader
