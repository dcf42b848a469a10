"""How a map becomes a vector."""
import torch
from torch import nn


class AttentionPool(nn.Module):
    """One trained class token attends to all cells of a map (B, D, h, w) and becomes the vector (B, D).

    As the attentive probe of Context Autoencoder (arXiv:2202.03026, section 4) and CaiT's class attention.
    """

    def __init__(self, channels, heads=8):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, feature):
        tokens = self.norm(feature.flatten(2).transpose(1, 2))  # (B, h * w, D)
        token = self.token.expand(len(tokens), -1, -1)
        return self.attention(token, tokens, tokens, need_weights=False)[0][:, 0]  # (B, D)
