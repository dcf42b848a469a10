# As dit_aselect_camvid.py with 40 labelled images.
_base_ = 'dit_aselect_camvid.py'
train_dataloader = dict(dataset=dict(indices=40))
