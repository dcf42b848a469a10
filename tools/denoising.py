"""The objective of tools/pretrain_dit.py: a DiT that denoises images some of whose tokens it does not see."""
import torch
import torch.nn.functional as F
from torch import nn


def patches(x, patch):
    """(B, C, H, W) to (B, h * w, patch * patch * C), in the order in which DiT's last layer puts them out."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def take(tokens, order):
    """The tokens (B, M, D) of (B, N, D) that ``order``, (B, M), names."""
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))


class Denoiser(nn.Module):
    """A DiTTransformer2DModel in training, with what training needs and the result does not have.

    With ``mask``, a random share of the tokens is left out; the last ``decoder`` blocks see a learned token in their places, so
    the loss can ask for all tokens (Zheng et al. 2023, MaskDiT, arXiv:2306.09305; He et al. 2021, MAE, arXiv:2111.06377), or, at
    less cost, for a part of them (Fu et al. 2024, CrossMAE, arXiv:2401.14391). The result takes whole images.

    Args:
        dit (DiTTransformer2DModel): The network, its last class being the null class.
        decoder (int): Blocks that see all tokens where some are left out; 0 where none ever are.
        embedding (int): Numbers of a vector for each image that ``forward`` returns too, for ``contrast``; 0 is none.
    """

    def __init__(self, dit, decoder=0, embedding=0):
        super().__init__()
        if not 0 <= decoder < len(dit.transformer_blocks):
            raise ValueError(f'{decoder} of {len(dit.transformer_blocks)} blocks cannot see all tokens where some see a part')
        self.dit, self.decoder = dit, decoder
        width = dit.config.num_attention_heads * dit.config.attention_head_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=decoder > 0)
        self.projection = nn.Sequential(nn.Linear(width, 4 * width, bias=False), nn.BatchNorm1d(4 * width), nn.ReLU(),
                                        nn.Linear(4 * width, embedding)) if embedding else None

    def maps(self, x, t):
        """What every block puts out, a list of (B, D, h, w), for (B, C, H, W) noisy images at the network's time t (B,)."""
        hidden, maps = self.dit.pos_embed(x), []
        height, width = (side // self.dit.config.patch_size for side in x.shape[-2:])
        null = torch.full_like(t, self.dit.config.num_embeds_ada_norm, dtype=torch.long)
        for block in self.dit.transformer_blocks:
            hidden = block(hidden, timestep=t, class_labels=null)
            maps.append(hidden.transpose(1, 2).unflatten(2, (height, width)))
        return maps

    def forward(self, x, t, order=None, visible=None):
        """What the network says of the tokens in ``order``, (B, M, patch * patch * C) in the layout of ``patches``, and vectors.

        The vectors (B, embedding) are of the mean of the visible tokens before the decoder; None without an embedding.

        Args:
            x (Tensor): (B, C, H, W), noisy.
            t (Tensor): (B,) the network's time.
            order (Tensor | None): (B, M) the tokens of each image that are asked for; None is all, in their order.
            visible (int | None): Of these, so many of the first are seen by every block, the others by none but the last ones.
        """
        dit, blocks = self.dit, self.dit.transformer_blocks
        null = torch.full_like(t, dit.config.num_embeds_ada_norm, dtype=torch.long)
        hidden = dit.pos_embed(x)  # (B, N, D)
        if order is not None:
            hidden = take(hidden, order[:, :visible])  # (B, visible, D)
        decoder = len(blocks) - self.decoder  # its first block
        for block in blocks[:decoder]:
            hidden = block(hidden, timestep=t, class_labels=null)
        vectors = None if self.projection is None else self.projection(hidden.mean(1))
        if order is not None and self.decoder:
            position = dit.pos_embed.pos_embed.to(hidden).expand(len(x), -1, -1)  # (B, N, D)
            hidden = torch.cat([hidden, (take(position, order[:, visible:]) + self.mask_token).to(hidden)], 1)  # (B, M, D)
        for block in blocks[decoder:]:
            hidden = block(hidden, timestep=t, class_labels=null)
        condition = blocks[0].norm1.emb(t, null, hidden_dtype=hidden.dtype)
        shift, scale = dit.proj_out_1(F.silu(condition)).chunk(2, dim=1)
        return dit.proj_out_2(dit.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None]), vectors


def contrast(vectors, temperature):
    """InfoNCE of (2B, D) vectors, rows i and B + i of two views of one image, all others being of other images.

    The loss is NT-Xent of Chen et al. 2020 (SimCLR, arXiv:2002.05709). That one network does it with noisy and masked views while
    it reconstructs them is from Mishra et al. 2022 (CAN, arXiv:2210.16870).
    """
    vectors = F.normalize(vectors.float(), dim=1)
    similar = vectors @ vectors.T / temperature  # (2B, 2B)
    similar.fill_diagonal_(-torch.inf)
    return F.cross_entropy(similar, torch.arange(len(vectors), device=vectors.device).roll(len(vectors) // 2))
