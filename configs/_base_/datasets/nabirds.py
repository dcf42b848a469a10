# NABirds, 555 classes. mmpretrain has no class for it, so this is its CustomDataset:
#   data/nabirds/images/0817/00009206... .jpg ...    as published
#   data/nabirds/train.txt, test.txt    a line '0817/NAME.jpg 321' per image, labels from 0 to 554
# The two lists come from the published images.txt, image_class_labels.txt and train_test_split.txt, whose classes have gaps:
#   paths, classes, splits = (dict(line.split() for line in open(f'{name}.txt'))
#                             for name in ('images', 'image_class_labels', 'train_test_split'))
#   labels = {c: n for n, c in enumerate(sorted(set(classes.values()), key=int))}
#   for part, flag in (('train', '1'), ('test', '0')):
#       open(f'{part}.txt', 'w').writelines(f'{paths[k]} {labels[classes[k]]}\n' for k in paths if splits[k] == flag)
_base_ = ['fine_grained_512.py']
data_root = 'data/nabirds'
dataset = dict(type='CustomDataset', data_root=data_root, data_prefix='images')
train_dataloader = dict(dataset=dict(**dataset, ann_file='train.txt'))
val_dataloader = dict(dataset=dict(**dataset, ann_file='test.txt'))
test_dataloader = val_dataloader
