"""Pretrains a DiT on unlabelled images, from nothing or from a folder of weights, on one machine.

    python tools/pretrain_dit.py OUT IMAGES [IMAGES ...] --work-dir work_dirs/pretrain
    torchrun --nproc_per_node 8 tools/pretrain_dit.py OUT IMAGES [IMAGES ...] --arch DiT-B --bf16 --compile

IMAGES are folders of PNG or JPEG files, or idx files as Fashion-MNIST's. First an AutoencoderKL is trained to reconstruct them,
then a DiT (Peebles and Xie 2023, arXiv:2212.09748) to denoise their latents, with no labels: every image carries the null class.
OUT gets the result in DiTPipeline layout (transformer/, vae/, scheduler/) with the moving average of the weights, the curves and
a grid of samples. With --pixels there is no VAE and the DiT works on the images themselves.

Both stages write a checkpoint into the work dir every few minutes and go on from it when the command is given again. Each step's
images, noise and timesteps depend on (seed, step) alone, so an interrupted run ends as an uninterrupted one. The learning rate
is constant after its warm-up and falls to zero over the last --decay of the steps, so --dit-steps may be changed before that.
"""
import argparse
import hashlib
import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from denoising import Denoiser, contrast, patches, take
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from pretrain_data import batch_indices, pixel_reader, read_images, scaled, view
from pretrain_loop import RANK, WORLD, fit, precision, say, share
from pretrain_vae import encode, train_vae
from probe_dit import left_out_accuracy, pooled, read_labelled
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import distributed
from torchvision.utils import save_image
from tqdm import tqdm

from mmaselect.extract.families.dit import set_frequencies
from mmaselect.extract.noise import NoiseProcess
from mmaselect.files import atomic

ARCHS = {name: dict(depth=depth, width=width, heads=heads) for name, depth, width, heads in (
    ('demo', 8, 128, 4), ('DiT-Ti', 12, 192, 3), ('DiT-S', 12, 384, 6), ('DiT-B', 12, 768, 12), ('DiT-L', 24, 1024, 16),
    ('DiT-XL', 28, 1152, 16))}
TIMESTEPS = 1000  # of a model that is trained from nothing
DDPM = dict(num_train_timesteps=TIMESTEPS, beta_schedule='linear', beta_start=1e-4, beta_end=0.02, clip_sample=False)
WEIGHTS = Path('transformer', 'diffusion_pytorch_model.safetensors')
EMBEDDING, TEMPERATURE = 128, 0.2  # of --contrast
# What may change when a run goes on.
ANYWHERE = 'out', 'work_dir', 'save_minutes', 'device', 'dit_steps', 'images', 'half', 'compile'


def new_dit(channels, size, args):
    """The DiT to be trained: of --init where it is given, else of the options' size and from nothing."""
    options = dict(patch_size=args.patch, in_channels=channels)
    if args.init:
        config = json.loads((Path(args.init) / 'transformer' / 'config.json').read_text())
        options['out_channels'] = channels  # a learned variance has no target here
        wrong = [f'{key} is {config.get(key)} there and {value} here' for key, value in options.items()
                 if value is not None and config.get(key) != value]
        if wrong:
            raise SystemExit(f'--init {args.init} does not fit: {"; ".join(wrong)}. Leave the options of size out, and they are '
                             'taken from there')
        dit = DiTTransformer2DModel.from_config(dict(config, sample_size=size))
        set_frequencies(dit)
        try:
            dit.load_state_dict(load_file(Path(args.init) / WEIGHTS))
        except (RuntimeError, OSError, SafetensorError) as error:
            raise SystemExit(f'--init {args.init}: the weights of transformer/ do not fit its config.json, or cannot be read: '
                             f'{error}') from error
        return dit.float()
    dit = DiTTransformer2DModel(**options, num_layers=args.depth, num_attention_heads=args.heads, num_embeds_ada_norm=1,
                                attention_head_dim=args.width // args.heads, out_channels=channels, sample_size=size,
                                norm_type='ada_norm_zero')
    # As in DiT's paper, section 3.2 and its code: Xavier's weights, every block starts as the identity, the output at zero.
    for layer in dit.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    for layer in (*(block.norm1.linear for block in dit.transformer_blocks), dit.proj_out_1, dit.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
    return dit


def probe_of(labelled, process, args):
    """A function of the moving average: (timestep, block, accuracy in percent) of each, on labelled clean ``x`` (N, C, h, w)."""
    x, labels = labelled
    noise = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0))  # one for all, as the plugin's

    @torch.no_grad()
    def probe(ema):
        found = []
        for timestep in args.probe_timesteps:
            rows = []
            for clean in x.split(100):
                t = torch.full((len(clean),), timestep)
                maps = ema.maps(process.add(clean, t, noise).to(args.device), process.model_time[t].to(args.device))
                rows.append([pooled(m).cpu() for m in maps])
            for block, features in enumerate(zip(*rows, strict=True)):
                if block >= len(rows[0]) // 3:  # the first third is never the best, and costs as much
                    found.append((timestep, block, round(left_out_accuracy(torch.cat(features), labels), 2)))
        return found

    return probe


def train_dit(read, shape, scheduler, images, labelled, args):
    """A DiT trained on ``read(indices, flip, generator)``: (B, C, h, w) of about unit deviation.

    ``shape`` is (C, h, w). The target is the noise, the clean x, or a velocity: that of flow matching (Lipman et al. 2023,
    arXiv:2210.02747), or of Salimans and Ho 2022 (arXiv:2202.00512).
    """
    process, patch = NoiseProcess.from_scheduler(scheduler), args.patch
    dit = new_dit(shape[0], shape[1], args)
    try:
        model = Denoiser(dit, args.decoder_blocks if args.mask else 0, EMBEDDING if args.contrast else 0).to(args.device)
    except ValueError as error:
        raise SystemExit(f'--decoder-blocks: {error}') from error
    say(f'DiT of {sum(p.numel() for p in model.dit.parameters()) / 1e6:.2f} M parameters, {(shape[1] // patch) ** 2} tokens')
    tokens = (shape[1] // patch) ** 2
    visible = tokens - round(args.mask * tokens)
    asked = visible + round(args.reconstruct * (tokens - visible))
    tables = (process.signal, process.sigma, process.model_time)
    on_device = NoiseProcess(*(table.float().to(args.device) for table in tables))

    def loss_of(network, step):
        generator = of_device = torch.Generator().manual_seed(args.seed * 10_000_019 + step + 1)
        if args.device != 'cpu':  # a GPU draws a batch's noise in no time
            of_device = torch.Generator(args.device).manual_seed(generator.initial_seed())
        draws = dict(generator=of_device, device=args.device)
        indices = batch_indices(args.seed, step, args.dit_batch, len(images))
        flip = torch.rand(len(indices), generator=generator) < (0.5 if args.flip else 0)
        x = read(indices, flip, generator).to(args.device)
        if args.contrast:
            x = torch.cat([view(x, of_device), view(x, of_device)])
        noise = torch.randn(x.shape, **draws)
        if args.time_mean is None:
            t = torch.randint(len(process), (len(x),), **draws)  # t=0 is the cleanest
        else:  # logit-normal, as Esser et al. 2024 (arXiv:2403.03206), section 3.1
            t = (torch.randn(len(x), **draws) * args.time_std + args.time_mean).sigmoid() * len(process)
            t = t.long().clamp(max=len(process) - 1)
        order = share(torch.rand(len(x), tokens, **draws).argsort(1)[:, :asked]) if args.mask else None
        x, noise, t = share(x), share(noise), share(t)
        signal, sigma = (table[t][:, None, None, None] for table in (on_device.signal, on_device.sigma))
        target = dict(epsilon=noise, sample=x, v_prediction=signal * noise - sigma * x, flow=noise - x)[args.prediction]
        with precision(args):
            out, vectors = network(on_device.add(x, t, noise), on_device.model_time[t], order, visible)
        target = patches(target, patch)  # (B, N, patch * patch * C)
        target = target if order is None else take(target, order)
        error = F.mse_loss(out.float(), target, reduction='none').mean((1, 2))  # (B,)
        if args.min_snr:
            # Hang et al. 2023 (arXiv:2303.09556): in terms of the clean x, every error weighs min(SNR, gamma).
            snr = (on_device.signal[t] / on_device.sigma[t]).square().clamp(min=1e-8)
            per = dict(epsilon=snr, sample=1, v_prediction=snr + 1, flow=(1 + snr.sqrt()).square())[args.prediction]
            error = error * (snr.clamp(max=args.min_snr) / per)
        return error.mean() + (args.contrast * contrast(vectors, TEMPERATURE) if args.contrast else 0)

    ema, curve = fit('dit', model, loss_of, args.dit_steps, args, labelled and probe_of(labelled, process, args))
    return ema.dit, curve


@torch.no_grad()
def sample(dit, vae, scheduler, count, seed, steps=50):
    """``count`` images (count, 3, H, W) in [0, 1], unconditional, by the scheduler's own steps (DDIM, or Euler's for flow)."""
    scheduler.set_timesteps(steps)
    shape = (count, dit.config.in_channels, dit.config.sample_size, dit.config.sample_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dit.device)
    null = torch.full((count,), dit.config.num_embeds_ada_norm, device=dit.device)
    for t in tqdm(scheduler.timesteps, desc='samples', mininterval=5):
        x = scheduler.step(dit(x, timestep=t.expand(count).to(dit.device), class_labels=null).sample, t, x).prev_sample
    images = x if vae is None else vae.decode(x / vae.config.scaling_factor).sample
    return (images / 2 + 0.5).clamp(0, 1).cpu()


def plot_curves(stages, path):
    """The losses of every stage, and beside them what the probe found at each timestep in its best block."""
    from matplotlib.figure import Figure
    probes = stages['DiT']['probes']
    figure = Figure(figsize=(4 * (len(stages) + bool(probes)), 3), layout='constrained')
    axes = figure.subplots(1, len(stages) + bool(probes), squeeze=False)[0]
    for axis, (name, curve) in zip(axes, stages.items(), strict=False):
        values = [loss for _, loss in curve['losses']]
        axis.plot(*zip(*curve['losses'], strict=True))
        axis.set(title=f'{name}, {curve["seconds"] / 60:.0f} minutes', xlabel='step', ylabel='loss',
                 yscale='log' if max(values, default=0) > 5 * min(values, default=0) else 'linear')
    if probes:
        for timestep in sorted({t for _, found in probes for t, _, _ in found}):
            best = [(step, max(a for t, _, a in found if t == timestep)) for step, found in probes]
            axes[-1].plot(*zip(*best, strict=True), marker='.', label=f't = {timestep}')
        axes[-1].set(title='linear probe, best block', xlabel='step', ylabel='accuracy / %')
        axes[-1].legend()
    with atomic(path) as part:
        figure.savefig(part, dpi=100)


def claim(args, images):
    """Writes into the work dir what its checkpoints are made from, or stops where it belongs to another run.

    Raises:
        SystemExit: The work dir was begun with other images or other options; the message names them.
    """
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.shape).encode() + image.tobytes())
    settings = {key: value for key, value in vars(args).items() if key not in ANYWHERE}
    if args.init:
        settings['init_sha256'] = hashlib.sha256((Path(args.init) / WEIGHTS).read_bytes()).hexdigest()
    if args.contrast and WORLD > 1:  # each process contrasts its own images
        settings['processes'] = WORLD
    settings = dict(settings, images=len(images), images_sha256=digest.hexdigest())
    path = args.work_dir / 'settings.json'
    if path.exists():
        former = json.loads(path.read_text())
        changed = [f'{key} was {former.get(key)!r} and is {settings.get(key)!r}' for key in sorted({*former, *settings})
                   if former.get(key) != settings.get(key)]
        if changed:
            raise SystemExit(f'{args.work_dir} belongs to another run: {"; ".join(changed)}. Give another --work-dir, or remove '
                             'this one')
    elif any((args.work_dir / f'{name}.pth').exists() for name in ('vae', 'dit')):
        raise SystemExit(f'{args.work_dir} has checkpoints and no settings.json, so nobody knows what they were made from: give '
                         'another --work-dir')
    elif RANK == 0:
        with atomic(path) as part:
            part.write_text(json.dumps(settings, indent=1) + '\n')


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('out', type=Path, help='folder for the result, in DiTPipeline layout')
    parser.add_argument('images', nargs='+', help='folders of PNG or JPEG files, or idx files')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/pretrain_dit'))
    parser.add_argument('--init', help='folder of a pretrained DiT to go on from; the VAE and scheduler are taken from there too')
    parser.add_argument('--seed', type=int, default=0)
    data = parser.add_argument_group('data')
    data.add_argument('--size', type=int, default=64, help='images are resized to this side, in pixels')
    data.add_argument('--crop', action='store_true', help='cut squares of --size at random in place of resizing; with --pixels')
    data.add_argument('--flip', action='store_true', help='mirror half of the images')
    size = parser.add_argument_group('size')
    size.add_argument('--arch', choices=ARCHS, help='depth, width and heads by name (default: demo)')
    size.add_argument('--depth', type=int)
    size.add_argument('--width', type=int)
    size.add_argument('--heads', type=int)
    size.add_argument('--patch', type=int, help='side of a token, in latents (default: 2) or with --pixels in pixels (4)')
    size.add_argument('--pixels', action='store_true', help='no VAE: the DiT works on the pixels')
    size.add_argument('--vae', help='folder or hub id of a pipeline whose vae/ is taken, in place of training one')
    size.add_argument('--vae-stride', type=int, choices=(2, 4, 8, 16), default=4)
    size.add_argument('--vae-channels', type=int, default=4)
    goal = parser.add_argument_group('objective')
    goal.add_argument('--prediction', choices=('epsilon', 'sample', 'v_prediction', 'flow'), help='default: epsilon')
    goal.add_argument('--time-mean', type=float, help='timesteps are T * sigmoid(normal) of this mean; evenly spread without')
    goal.add_argument('--time-std', type=float, default=1.0)
    goal.add_argument('--min-snr', type=float, help='gamma of min-SNR weighting, 5 in its paper; none without')
    goal.add_argument('--mask', type=float, default=0.0, help='share of the tokens that all but the last blocks do not see')
    goal.add_argument('--reconstruct', type=float, default=1.0, help='share of the masked tokens that the loss asks for')
    goal.add_argument('--contrast', type=float, default=0.0, help='weight of an InfoNCE loss between two views of each image: '
                      'crops of other colours, noise and masks; with --pixels. Each process contrasts its own images')
    goal.add_argument('--decoder-blocks', type=int, default=1, help='last blocks, which see all tokens')
    steps = parser.add_argument_group('training')
    steps.add_argument('--vae-steps', type=int, default=2000)
    steps.add_argument('--vae-batch', type=int, default=16)
    steps.add_argument('--dit-steps', type=int, default=6000)
    steps.add_argument('--dit-batch', type=int, default=64, help='of all processes together')
    steps.add_argument('--lr', type=float, default=1e-3)
    steps.add_argument('--warmup', type=int, default=200, help='steps')
    steps.add_argument('--decay', type=float, default=0.3, help='share of the steps over which the learning rate falls to zero')
    steps.add_argument('--weight-decay', type=float, default=0.0)
    steps.add_argument('--beta2', type=float, default=0.99)
    steps.add_argument('--ema', type=float, default=0.999)
    steps.add_argument('--save-minutes', type=float, default=3)
    steps.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    steps.add_argument('--bf16', action='store_true', help='mixed precision: twice as fast on CPUs that have avx512_bf16')
    steps.add_argument('--compile', action='store_true', help='torch.compile')
    steps.add_argument('--half', action='store_true', help='keeps the DiT in float16, which halves the file')
    probe = parser.add_argument_group('probe')
    probe.add_argument('--probe', help='folder with a folder of images a class: the weights best by a linear probe are kept')
    probe.add_argument('--probe-per-class', type=int, default=100, help='images')
    probe.add_argument('--probe-timesteps', type=int, nargs='+', default=[0, 50, 150])
    probe.add_argument('--probe-every', type=int, default=1000, help='steps')
    args = parser.parse_args()
    if args.crop and not args.pixels:
        parser.error('--crop needs --pixels: latents are encoded once, of whole images')
    if args.contrast and (args.crop or not args.pixels):
        parser.error('--contrast needs --pixels, and cuts crops of its own: leave --crop out')
    if not 0 <= args.mask < 1:
        parser.error(f'--mask {args.mask}: a share of the tokens, at least 0 and below 1')
    if args.mask and args.decoder_blocks < 1:
        parser.error('--decoder-blocks 0: with --mask the last blocks, one or more, put out the tokens that are left out')
    for name in ('dit_batch', 'vae_batch'):
        if getattr(args, name) < 1 or getattr(args, name) % WORLD:
            parser.error(f'--{name.replace("_", "-")} {getattr(args, name)} cannot be shared by the number of processes, {WORLD}')
    if args.contrast and args.dit_batch < 2 * WORLD:
        parser.error(f'--dit-batch {args.dit_batch}: --contrast needs two images or more in each of the {WORLD} processes')
    if args.warmup < 1:
        parser.error(f'--warmup {args.warmup}: one step or more')
    if args.init:
        try:
            former, scheduler = (json.loads((Path(args.init) / name).read_text())
                                 for name in ('transformer/config.json', 'scheduler/scheduler_config.json'))
        except OSError as error:
            parser.error(f'--init {args.init} is not a folder in DiTPipeline layout, with transformer/ and scheduler/: {error}')
        if not args.pixels and not args.vae and not (Path(args.init) / 'vae').is_dir():
            parser.error(f'--init {args.init} has no vae/: give --pixels, or a --vae')
        for name in ('arch', 'depth', 'width', 'heads'):
            if getattr(args, name):
                parser.error(f'--{name} is that of --init {args.init}: leave it out')
        if not (Path(args.init) / WEIGHTS).is_file():
            parser.error(f'--init {args.init} has no {WEIGHTS}')
        args.patch, timesteps = args.patch or former['patch_size'], scheduler['num_train_timesteps']
        prediction = scheduler.get('prediction_type', 'flow')
        if args.prediction not in (None, prediction):
            parser.error(f'--init {args.init} predicts {prediction}, so --prediction {args.prediction} does not fit')
        args.prediction = prediction
    else:
        args.prediction, timesteps = args.prediction or 'epsilon', TIMESTEPS
        arch = ARCHS[args.arch or 'demo']
        args.depth, args.width, args.heads = (getattr(args, key) or arch[key] for key in ('depth', 'width', 'heads'))
        args.patch = args.patch or (4 if args.pixels else 2)
        if args.width % args.heads:
            parser.error(f'--width {args.width} is not a multiple of --heads {args.heads}')
    cell = args.patch * (1 if args.pixels else args.vae_stride)
    if (args.pixels or not (args.vae or args.init)) and args.size % cell:
        parser.error(f'--size {args.size} is not a multiple of a token, {cell} pixels')
    outside = [t for t in args.probe_timesteps if not 0 <= t < timesteps]
    if outside:
        parser.error(f'--probe-timesteps {outside}: there are {timesteps}, from 0')
    return args


def main():
    args = parse()
    torch.manual_seed(args.seed)
    if WORLD > 1:
        distributed.init_process_group('nccl' if args.device == 'cuda' else 'gloo')
        if args.device == 'cuda':
            args.device = f'cuda:{os.environ["LOCAL_RANK"]}'
            torch.cuda.set_device(args.device)
    images = read_images(args.images, args.size, args.crop)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    claim(args, images)

    if args.init:
        kind = FlowMatchEulerDiscreteScheduler if args.prediction == 'flow' else DDIMScheduler
        scheduler = kind.from_pretrained(args.init, subfolder='scheduler')
    elif args.prediction == 'flow':
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)
    else:
        scheduler = DDIMScheduler(**DDPM, prediction_type=args.prediction)
    vae, curves, labelled = None, {}, None
    if args.probe:
        labelled = read_labelled(args.probe, args.size, args.probe_per_class, args.seed)
    if args.pixels:
        read, shape = pixel_reader(images, args), (3, args.size, args.size)
        labelled = labelled and (scaled(torch.from_numpy(labelled[0])), labelled[1])
    else:
        if args.vae or args.init:
            vae = AutoencoderKL.from_pretrained(args.vae or args.init, subfolder='vae').to(args.device)
            if args.init and (vae.config.shift_factor or vae.config.latents_mean):
                raise SystemExit(f'--init {args.init}: the latents of its VAE have a shift (shift_factor, latents_mean), without '
                                 'which this tool trains: leave --init out, and take the VAE by --vae')
        else:
            vae, curves['VAE'] = train_vae(images, args)
        both = images + [image[:, ::-1] for image in images] if args.flip else images
        latents = encode(vae, both, args.work_dir / 'latents.safetensors')
        scale = vae.config.scaling_factor if args.init else 1 / latents.float().std().item()
        vae.register_to_config(scaling_factor=scale, shift_factor=None, latents_mean=None, latents_std=None)  # as ``read`` does

        def read(indices, flip, generator):
            return latents[indices + len(images) * flip].float() * scale
        shape = latents.shape[1:]
        labelled = labelled and (encode(vae, labelled[0]).float() * scale, labelled[1])
    dit, curves['DiT'] = train_dit(read, shape, scheduler, images, labelled, args)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if RANK:
        return
    pictures = sample(dit, vae, scheduler, 64, args.seed)
    kept = dit.half() if args.half else dit
    try:
        if args.pixels:
            kept.save_pretrained(args.out / 'transformer')
            scheduler.save_pretrained(args.out / 'scheduler')
        else:
            DiTPipeline(kept, vae, scheduler).save_pretrained(args.out)
        save_image(pictures, args.out / 'samples.png', nrow=16)
        plot_curves(curves, args.out / 'loss.png')
    except OSError as error:
        raise SystemExit(f'{args.out} could not be written ({error}). {args.work_dir} holds the trained weights: free space, or '
                         'name another folder, and give the command again') from error
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
