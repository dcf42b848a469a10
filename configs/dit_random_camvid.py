# Control of dit_aselect_camvid.py: the same architecture, schedule and selection, with random weights.
_base_ = 'dit_aselect_camvid.py'
model = dict(backbone=dict(
    pretrained=None,
    arch=dict(transformer=dict(
        num_attention_heads=4, attention_head_dim=64, num_layers=8, in_channels=3, out_channels=3, sample_size=32, patch_size=4,
        num_embeds_ada_norm=1, norm_type='ada_norm_zero'))))
