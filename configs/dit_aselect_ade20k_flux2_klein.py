# FLUX.2 klein, base 4B, under UPerNet, otherwise as with DiT. Block 12 is the middle of 25: no paper has measured which is best.
# Before the first run, encode the empty prompt once: python tools/encode_null_prompt.py <the same folder or hub id>
pretrained = 'black-forest-labs/FLUX.2-klein-base-4B'  # hub id, or the path of a folder in its layout
width = 3072

_base_ = ['dit_aselect_ade20k.py']
model = dict(
    backbone=dict(pretrained=pretrained, taps=[(12, 'hidden')], dtype='bfloat16'),
    neck=dict(in_channels=width, num_taps=1),
    decode_head=dict(in_channels=[width] * 4),
    auxiliary_head=dict(in_channels=width))
