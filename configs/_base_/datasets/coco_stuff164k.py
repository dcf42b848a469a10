# COCO-Stuff 164k, 171 classes, in mmseg's layout: data/coco_stuff164k/{images,annotations}/{train2017,val2017}, the masks as
# *_labelTrainIds.png, which mmseg's tools/dataset_converters/coco_stuff164k.py writes.
_base_ = ['segmentation_512.py']
data_root = 'data/coco_stuff164k'
dataset = dict(type='COCOStuffDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(**dataset, data_prefix=dict(img_path='images/train2017', seg_map_path='annotations/train2017')))
val_dataloader = dict(
    dataset=dict(**dataset, data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017')))
test_dataloader = val_dataloader
