# As dit_aselect_cifar10.py with 40 labelled images of each class, and as many batches.
_base_ = 'dit_aselect_cifar10.py'
train_dataloader = dict(dataset=dict(indices=10 * 40))
