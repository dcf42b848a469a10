"""Pretrains a small DiT on unlabelled images, from nothing, on one machine.

    python tools/pretrain_dit.py OUT IMAGES [IMAGES ...] --work-dir work_dirs/pretrain

IMAGES are folders of PNG or JPEG files, or idx files as Fashion-MNIST's. First an AutoencoderKL (stride 4, four latent
channels) is trained to reconstruct them, then a DiT (Peebles and Xie 2023, arXiv:2212.09748; epsilon prediction, T=1000,
linear betas, exponential moving average of the weights) to denoise their latents, with no labels: every image carries the
null class. OUT gets the result in DiTPipeline layout (transformer/, vae/, scheduler/), the loss curve and a grid of samples.
With --pixels there is no VAE and the DiT works on the images themselves, in patches of 4; with --flow it predicts the
velocity of flow matching instead (Lipman et al. 2023, arXiv:2210.02747; with a DiT, this is SiT, arXiv:2401.08740).

Both stages write a checkpoint into the work dir every few minutes and go on from it when the command is given again.
Each step's images, noise and timesteps depend on (seed, step) alone, so an interrupted run ends as an uninterrupted one.
"""
import argparse
import contextlib
import copy
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.datasets.mnist import read_image_file
from torchvision.utils import save_image

from mmaselect.extract.noise import NoiseProcess
from mmaselect.files import atomic

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:  # torch before 2.3, which leaves no choice
    sdpa_kernel = None

VAE = dict(block_out_channels=(16, 32, 64), down_block_types=('DownEncoderBlock2D',) * 3,
           up_block_types=('UpDecoderBlock2D',) * 3, layers_per_block=1, latent_channels=4, norm_num_groups=8)
DIT = dict(num_attention_heads=4, attention_head_dim=32, num_layers=8, norm_type='ada_norm_zero', num_embeds_ada_norm=1)
DDPM = dict(num_train_timesteps=1000, beta_schedule='linear', beta_start=1e-4, beta_end=0.02, clip_sample=False)


def read_images(sources, size):
    """All images of the folders and idx files, as uint8 (N, size, size, 3)."""
    images = []
    for source in map(Path, sources):
        if source.is_dir():
            files = sorted(p for p in source.rglob('*') if p.suffix.lower() in ('.png', '.jpg', '.jpeg'))
            pictures = map(Image.open, files)
        else:
            try:
                pictures = map(Image.fromarray, read_image_file(source).numpy())
            except Exception as error:  # torchvision asserts, and raises what a wrong length raises
                raise SystemExit(f'{source} is neither a folder nor an idx file of images: {error!r}') from error
        found = [np.asarray(p.convert('RGB').resize((size, size), Image.BILINEAR)) for p in pictures]
        if not found:
            raise SystemExit(f'{source} has no PNG or JPEG files')
        print(f'{len(found)} images from {source}', flush=True)
        images += found
    return np.stack(images)


def batch_indices(seed, step, size, count):
    """Which images a step sees, (size,): random with replacement, from (seed, step) alone."""
    return torch.randint(count, (size,), generator=torch.Generator().manual_seed(seed * 10_000_019 + step))


def to_tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)  # (B, 3, H, W) in [-1, 1]


def learning_rate(step, steps, peak):
    return peak * min(1, (step + 1) / 200) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def fit(name, model, loss_of, steps, peak, args):
    """Trains ``model`` with AdamW on ``loss_of(step)``; resumes from its checkpoint. The EMA, losses and seconds."""
    checkpoint, log = args.work_dir / f'{name}.pth', args.work_dir / f'{name}_loss.csv'
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0)
    ema, first, losses, seconds = copy.deepcopy(model).requires_grad_(False), 0, [], 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state['model'])
        ema.load_state_dict(state['ema'])
        optimizer.load_state_dict(state['optimizer'])
        first, losses, seconds = state['step'], state['losses'], state['seconds']
        print(f'{name}: goes on from step {first}', flush=True)

    def save(step):
        with atomic(checkpoint) as part:
            torch.save(dict(model=model.state_dict(), ema=ema.state_dict(), optimizer=optimizer.state_dict(), step=step,
                            losses=losses, seconds=seconds + time.time() - start), part)
        with atomic(log) as part, open(part, 'w', newline='') as file:
            csv.writer(file).writerows([('step', 'loss'), *losses])

    start = saved = time.time()
    total = torch.zeros((), device=args.device)
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(step, steps, peak)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        total += loss.detach()
        if (step + 1) % 100 == 0:
            losses.append((step + 1, round(total.item() / 100, 5)))
            total.zero_()
            pace = (step + 1 - first) / (time.time() - start)
            print(f'{name} {step + 1}/{steps} loss {losses[-1][1]} {pace:.2f} it/s', flush=True)
            if time.time() - saved > 60 * args.save_minutes:
                save(step + 1)
                saved = time.time()
    if first < steps:
        save(steps)
    return ema.eval(), losses, seconds + time.time() - start


def precision(args):
    """Mixed precision where asked for. On a CPU, PyTorch's fused attention is slow in bfloat16: plain matmuls are not."""
    context = contextlib.ExitStack()
    if args.bf16:
        device = torch.device(args.device).type
        context.enter_context(torch.autocast(device, torch.bfloat16))
        if device == 'cpu' and sdpa_kernel:
            context.enter_context(sdpa_kernel(SDPBackend.MATH))
    return context


def train_vae(images, args):
    """An AutoencoderKL trained on mean absolute error and a faint KL, with its EMA weights."""
    vae = AutoencoderKL(**VAE, sample_size=args.size).to(args.device)

    def loss_of(step):
        x = to_tensor(images[batch_indices(args.seed, step, args.vae_batch, len(images))]).to(args.device)  # (B, 3, H, W)
        generator = torch.Generator().manual_seed(args.seed + step)
        with precision(args):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(args.device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        return F.l1_loss(decoded.float(), x) + 1e-6 * posterior.kl().float().mean()

    return fit('vae', vae, loss_of, args.vae_steps, 1e-3, args)


@torch.no_grad()
def encode(vae, images, args):
    """The latents' means, (N, C, H/4, W/4) in float16 on the CPU, kept in the work dir so that a resumed run has them."""
    cache = args.work_dir / 'latents.safetensors'
    if not cache.exists():
        chunks = [vae.encode(to_tensor(chunk).to(args.device)).latent_dist.mean.half().cpu().contiguous()
                  for chunk in np.array_split(images, math.ceil(len(images) / 64))]
        with atomic(cache) as part:
            save_file(dict(latents=torch.cat(chunks)), part)
    return load_file(cache)['latents']


def train_dit(read, shape, patch, scheduler, args):
    """A DiT trained on ``read(indices)``, (B, C, h, w) of about unit deviation, all of the null class.

    ``shape`` is (N, C, h, w) of all there is to read. The target is the noise, or the velocity where the scheduler is one of
    flow matching.
    """
    count, channels, size = shape[:3]
    dit = DiTTransformer2DModel(**DIT, patch_size=patch, in_channels=channels, out_channels=channels, sample_size=size)
    dit.to(args.device)
    # As in DiT's paper, section 3.2: every block starts as the identity and the output at zero.
    for layer in (*(block.norm1.linear for block in dit.transformer_blocks), dit.proj_out_1, dit.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    process = NoiseProcess.from_scheduler(scheduler)
    null = torch.full((args.dit_batch,), DIT['num_embeds_ada_norm'], device=args.device)

    def loss_of(step):
        generator = torch.Generator().manual_seed(args.seed * 10_000_019 + step + 1)
        x = read(batch_indices(args.seed, step, args.dit_batch, count))
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(len(process), (len(x),), generator=generator)  # t=0 is the cleanest
        noisy, target = process.add(x, t, noise), noise - x if args.flow else noise
        with precision(args):
            out = dit(noisy.to(args.device), timestep=process.model_time[t].to(args.device), class_labels=null).sample
        return F.mse_loss(out.float(), target.to(args.device))

    return fit('dit', dit, loss_of, args.dit_steps, 1e-3, args)


@torch.no_grad()
def sample(dit, vae, scheduler, count, seed, steps=50):
    """``count`` images (count, 3, H, W) in [0, 1], unconditional, by the scheduler's own steps (DDIM, or Euler's for flow)."""
    scheduler.set_timesteps(steps)
    shape = (count, dit.config.in_channels, dit.config.sample_size, dit.config.sample_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dit.device)
    null = torch.full((count,), DIT['num_embeds_ada_norm'], device=dit.device)
    for t in scheduler.timesteps:
        x = scheduler.step(dit(x, timestep=t.expand(count).to(dit.device), class_labels=null).sample, t, x).prev_sample
    images = x if vae is None else vae.decode(x / vae.config.scaling_factor).sample
    return (images / 2 + 0.5).clamp(0, 1).cpu()


def plot_losses(stages, path):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 3), layout='constrained')
    for axis, (name, losses, seconds) in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        axis.plot(*zip(*losses, strict=True))
        axis.set(title=f'{name}, {seconds / 60:.0f} minutes', xlabel='step', ylabel='loss', yscale='log')
    with atomic(path) as part:
        figure.savefig(part, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('out', type=Path, help='folder for the result, in DiTPipeline layout')
    parser.add_argument('images', nargs='+', help='folders of PNG or JPEG files, or idx files')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/pretrain_dit'))
    parser.add_argument('--size', type=int, default=64, help='images are resized to this side, in pixels')
    parser.add_argument('--vae-steps', type=int, default=2000)
    parser.add_argument('--vae-batch', type=int, default=16)
    parser.add_argument('--dit-steps', type=int, default=6000)
    parser.add_argument('--dit-batch', type=int, default=64)
    parser.add_argument('--save-minutes', type=float, default=3)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--bf16', action='store_true', help='mixed precision: twice as fast on CPUs that have avx512_bf16')
    parser.add_argument('--half', action='store_true', help='keeps the DiT in float16, which halves the file')
    parser.add_argument('--vae', help='folder or hub id of a pipeline whose vae/ is taken, in place of training one')
    parser.add_argument('--pixels', action='store_true', help='no VAE: the DiT works on the pixels')
    parser.add_argument('--flow', action='store_true', help='flow matching (velocity) in place of DDPM (noise)')
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)

    images = read_images(args.images, args.size)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000) if args.flow else DDIMScheduler(**DDPM)
    vae, logs = None, []
    if args.pixels:
        def read(indices):
            return to_tensor(images[indices])
        # A patch of 8 has 192 numbers, and no layer of 128 channels can hold all of their noise, which is to be predicted.
        shape, patch = (len(images), 3, args.size, args.size), 4
    else:
        if args.vae:
            vae = AutoencoderKL.from_pretrained(args.vae, subfolder='vae').to(args.device)
        else:
            vae, *log = train_vae(images, args)
            logs.append(('VAE', *log))
        latents = encode(vae, images, args)
        scale = 1 / latents.float().std().item()
        vae.register_to_config(scaling_factor=scale)

        def read(indices):
            return latents[indices].float() * scale
        shape, patch = latents.shape, 2
    dit, *log = train_dit(read, shape, patch, scheduler, args)
    logs.append(('DiT', *log))

    kept = copy.deepcopy(dit).half() if args.half else dit
    if args.pixels:
        kept.save_pretrained(args.out / 'transformer')
        scheduler.save_pretrained(args.out / 'scheduler')
    else:
        DiTPipeline(kept, vae, scheduler).save_pretrained(args.out)
    save_image(sample(dit, vae, scheduler, 64, args.seed), args.out / 'samples.png', nrow=16)
    plot_losses(logs, args.out / 'loss.png')
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
