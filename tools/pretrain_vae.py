"""The first stage of tools/pretrain_dit.py: a VAE, and the latents that the DiT is trained on."""
import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from pretrain_data import batch_indices, to_tensor
from pretrain_loop import fit, precision, share
from safetensors.torch import load_file, save_file

from mmaselect.files import atomic


def train_vae(images, args):
    """An AutoencoderKL trained on mean absolute error and a faint KL, with its EMA weights."""
    stages = int(math.log2(args.vae_stride)) + 1
    vae = AutoencoderKL(block_out_channels=[16 * 2 ** i for i in range(stages)], down_block_types=['DownEncoderBlock2D'] * stages,
                        up_block_types=['UpDecoderBlock2D'] * stages, layers_per_block=1, latent_channels=args.vae_channels,
                        norm_num_groups=8, sample_size=args.size)

    class Reconstruction(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae

        def forward(self, x, generator):
            posterior = self.vae.encode(x).latent_dist
            noise = share(torch.randn((args.vae_batch, *posterior.mean.shape[1:]), generator=generator)).to(x)
            decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
            return F.l1_loss(decoded.float(), x) + 1e-6 * posterior.kl().float().mean()

    def loss_of(network, step):
        rows = share(batch_indices(args.seed, step, args.vae_batch, len(images)))
        with precision(args):
            return network(to_tensor([images[i] for i in rows]).to(args.device), torch.Generator().manual_seed(args.seed + step))

    ema, curve = fit('vae', Reconstruction().to(args.device), loss_of, args.vae_steps, args)
    return ema.vae, curve


@torch.no_grad()
def encode(vae, images, path=None):
    """The latents' means, (N, C, h, w) in float16 on the CPU, kept in the file ``path`` so that a resumed run has them."""
    if path is None or not path.exists():
        latents = torch.cat([vae.encode(to_tensor(images[i:i + 64]).to(vae.device)).latent_dist.mean.half().cpu().contiguous()
                             for i in range(0, len(images), 64)])
        if path is None:
            return latents
        with atomic(path) as part:
            save_file(dict(latents=latents), part)
    return load_file(path)['latents']
