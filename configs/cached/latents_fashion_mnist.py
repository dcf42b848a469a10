# dit_aselect_fashion_mnist.py on cached latents: the same training, without the VAE. First
#     python tools/cache_latents.py configs/dit_aselect_fashion_mnist.py
_base_ = '../dit_aselect_fashion_mnist.py'
latents = 'work_dirs/latents/dit_aselect_fashion_mnist'
model = dict(
    data_preprocessor=dict(_delete_=True, type='ClsDataPreprocessor'),  # latents pass as they are
    # The timestep that tools/select_timestep.py chooses by half_consistency on the config with images.
    backbone=dict(latents=latents, timestep=69))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmaselect.LoadLatents', cache=f'{latents}/train'),
    dict(type='PackInputs')
]))
val_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmaselect.LoadLatents', cache=f'{latents}/val'),
    dict(type='PackInputs')
]))
test_dataloader = val_dataloader
