# Fashion-MNIST, 2,000 labelled images for training, enlarged to the 64x64 RGB that fashion_dit was pretrained on.
data_root = 'data/fashion_mnist'
pipeline = [
    dict(type='NumpyToPIL'),
    dict(type='torchvision/Grayscale', num_output_channels=3),
    dict(type='torchvision/Resize', size=64),
    dict(type='PILToNumpy'),
    dict(type='PackInputs')
]
train_dataloader = dict(
    batch_size=50,
    num_workers=0,
    persistent_workers=False,  # mmpretrain's own tools would switch it on
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='FashionMNIST', data_root=data_root, split='train', indices=2000, pipeline=pipeline))
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,  # mmpretrain's own tools would switch it on
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    # test_mode, not split, is what makes mmpretrain read the test images.
    dataset=dict(type='FashionMNIST', data_root=data_root, split='test', test_mode=True, pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
