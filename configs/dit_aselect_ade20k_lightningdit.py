# LightningDiT-XL/1 under UPerNet, otherwise as with DiT. Block 14 is the middle of 28: no paper has measured which is best.
# tools/model_converters/dit2diffusers.py makes the folder of its authors' files; docs/families.md has the command.
pretrained = 'checkpoints/lightningdit_xl_256'
width = 1152

_base_ = ['dit_aselect_ade20k.py']
model = dict(
    backbone=dict(pretrained=pretrained, taps=[(14, 'hidden')]),
    neck=dict(in_channels=width, num_taps=1),
    decode_head=dict(in_channels=[width] * 4),
    auxiliary_head=dict(in_channels=width))
