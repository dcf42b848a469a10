# ADE20K's scene parsing benchmark, 150 classes, in mmseg's layout: data/ade/ADEChallengeData2016/{images,annotations}.
_base_ = ['segmentation_512.py']
data_root = 'data/ade/ADEChallengeData2016'
dataset = dict(type='ADE20KDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(**dataset, data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(
    dataset=dict(**dataset, data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')))
test_dataloader = val_dataloader
