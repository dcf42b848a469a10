# A linear classifier on the features of a DiT, pooled by the attention of a trained class token: the sizes of DiT-XL/2.
_base_ = ['linear_dit.py']
# No batch normalisation over the map: the pooling has its own normalisation of each token.
model = dict(neck=dict(pool='attention', num_heads=16, norm=None))
