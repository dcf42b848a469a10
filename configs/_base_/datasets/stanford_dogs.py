# Stanford Dogs, 120 classes. mmpretrain has no class for it, so this is its CustomDataset:
#   data/stanford_dogs/Images/n02085620-Chihuahua/n02085620_5927.jpg ...    as published
#   data/stanford_dogs/train.txt, test.txt    a line 'n02085620-Chihuahua/n02085620_5927.jpg 0' per image, labels from 0
# The two lists come from the published train_list.mat and test_list.mat:
#   from scipy.io import loadmat
#   for part in ('train', 'test'):
#       lists = loadmat(f'{part}_list.mat')
#       lines = [f'{f[0][0]} {l[0] - 1}\n' for f, l in zip(lists['file_list'], lists['labels'])]
#       open(f'{part}.txt', 'w').writelines(lines)
_base_ = ['fine_grained_512.py']
data_root = 'data/stanford_dogs'
dataset = dict(type='CustomDataset', data_root=data_root, data_prefix='Images')
train_dataloader = dict(dataset=dict(**dataset, ann_file='train.txt'))
val_dataloader = dict(dataset=dict(**dataset, ann_file='test.txt'))
test_dataloader = val_dataloader
