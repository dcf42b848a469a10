# Pascal VOC 2012 with the masks of the Semantic Boundaries Dataset, 21 classes, 10,582 images for training, in mmseg's layout:
# data/VOCdevkit/VOC2012, where mmseg's tools/dataset_converters/voc_aug.py writes SegmentationClassAug and aug.txt.
_base_ = ['segmentation_512.py']
data_root = 'data/VOCdevkit/VOC2012'
dataset = dict(type='PascalVOCDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                **dataset,
                data_prefix=dict(img_path='JPEGImages', seg_map_path=masks),
                ann_file=f'ImageSets/Segmentation/{names}.txt',
                pipeline=_base_.train_pipeline)
            for masks, names in (('SegmentationClass', 'train'), ('SegmentationClassAug', 'aug'))
        ]))
val_dataloader = dict(
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt'))
test_dataloader = val_dataloader
