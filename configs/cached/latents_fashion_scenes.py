# dit_aselect_fashion_scenes.py on cached latents: the same training, without the VAE. First
#     python tools/cache_latents.py configs/dit_aselect_fashion_scenes.py --flip
_base_ = '../dit_aselect_fashion_scenes.py'
latents = 'work_dirs/latents/dit_aselect_fashion_scenes'
model = dict(
    # Latents pass as they are. mmseg wants a size or a divisor.
    data_preprocessor=dict(_delete_=True, type='SegDataPreProcessor', size_divisor=1, seg_pad_val=255),
    # The timestep that tools/select_timestep.py chooses by half_consistency on the config with images.
    backbone=dict(latents=latents, timestep=100))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmaselect.LoadLatents', cache=f'{latents}/train'),
    dict(type='LoadAnnotations'),
    dict(type='mmaselect.FlipLatents', prob=0.5),
    dict(type='PackSegInputs')
]))
val_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmaselect.LoadLatents', cache=f'{latents}/val'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]))
test_dataloader = val_dataloader
default_hooks = dict(visualization=dict(draw=False))
