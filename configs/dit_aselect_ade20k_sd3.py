# A-SelecT's SD3 (arXiv:2603.25758): the queries of block 9 of a frozen SD3-medium under UPerNet, otherwise as with DiT.
# Before the first run, encode the empty prompt once: python tools/encode_null_prompt.py <the same folder or hub id>
pretrained = 'stabilityai/stable-diffusion-3-medium-diffusers'  # hub id, or the path of a folder in its layout
width = 1536

_base_ = ['dit_aselect_ade20k.py']
model = dict(
    backbone=dict(pretrained=pretrained, taps=[(9, 'query')]),
    neck=dict(in_channels=width, num_taps=1),
    decode_head=dict(in_channels=[width] * 4),
    auxiliary_head=dict(in_channels=width))
