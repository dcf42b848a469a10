"""The loop of tools/pretrain_dit.py: AdamW, a moving average, a probe, and checkpoints from which it goes on exactly."""
import contextlib
import copy
import csv
import math
import os
import time

import torch
from torch import distributed
from tqdm import tqdm

from mmaselect.files import atomic

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:  # torch before 2.3, which leaves no choice
    sdpa_kernel = None

RANK, WORLD = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
LOG = 50  # steps between two points of the curve


def say(text):
    """Prints once, whatever the number of processes."""
    if RANK == 0:
        tqdm.write(text)


def share(batch):
    """This process's rows of a batch that all processes know: with one process, all."""
    return batch[RANK::WORLD]


def precision(args):
    """Mixed precision where asked for. On a CPU, PyTorch's fused attention is slow in bfloat16: plain matmuls are not."""
    context = contextlib.ExitStack()
    if args.bf16:
        device = torch.device(args.device).type
        context.enter_context(torch.autocast(device, torch.bfloat16))
        if device == 'cpu' and sdpa_kernel:
            context.enter_context(sdpa_kernel(SDPBackend.MATH))
    return context


def learning_rate(step, steps, args):
    """Linear warm-up, constant, linear decay over the last share of the steps (Zhai et al. 2022, arXiv:2106.04560)."""
    return args.lr * max(0, min(1, (step + 1) / args.warmup, (steps - step) / max(1, args.decay * steps)))


def fit(name, model, loss_of, steps, args, probe=None):
    """Trains ``model`` with AdamW on ``loss_of(network, step)``; goes on from its checkpoint.

    Returns:
        tuple: The moving average, or what of it was best by ``probe(ema)``; the curves, a dict of losses, probes and seconds.
    """
    checkpoint = args.work_dir / f'{name}.pth'
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=args.weight_decay), dict(params=others, weight_decay=0)],
                                  lr=args.lr, betas=(0.9, args.beta2), fused=torch.device(args.device).type == 'cuda')
    ema, first = copy.deepcopy(model).requires_grad_(False).eval(), 0
    curve, best = dict(losses=[], probes=[], seconds=0.0, steps=steps), None
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location='cpu', weights_only=True)  # whichever device it was on
        model.load_state_dict(state['model'])
        ema.load_state_dict(state['ema'])
        optimizer.load_state_dict(state['optimizer'])
        first, curve, best = state['step'], state['curve'], state['best']
        if curve['steps'] != steps and first > (1 - args.decay) * min(steps, curve['steps']):
            raise SystemExit(f'{checkpoint} is at step {first} of {curve["steps"]}, where the learning rate falls already, so '
                             f'{steps} steps cannot be gone on with: give {curve["steps"]}, or another --work-dir')
        curve['steps'] = steps
        say(f'{name}: goes on from step {first}')
    network = torch.compile(model) if args.compile else model
    if distributed.is_initialized():
        network = torch.nn.parallel.DistributedDataParallel(network)
    before = curve['seconds']

    def save(step):
        curve['seconds'] = before + time.time() - start
        if RANK:
            return
        try:
            with atomic(checkpoint) as part:
                torch.save(dict(model=model.state_dict(), ema=ema.state_dict(), optimizer=optimizer.state_dict(), step=step,
                                curve=curve, best=best), part)
            for kind in ('losses', 'probes'):
                with atomic(args.work_dir / f'{name}_{kind}.csv') as part, open(part, 'w', newline='') as file:
                    rows = curve[kind]
                    csv.writer(file).writerows(rows if kind == 'losses' else [(s, *row) for s, found in rows for row in found])
        except (OSError, RuntimeError) as error:  # torch.save's writer raises the latter on a full disk
            kept = 'the former one is whole' if checkpoint.exists() else 'there is none yet'
            raise SystemExit(f'{checkpoint} could not be written at step {step} ({error}): {kept}. Free space, or give '
                             'another --work-dir, and start the command again') from error

    start = saved = time.time()
    total = torch.zeros((), device=args.device)
    bar = tqdm(total=steps, initial=first, desc=name, unit='step', disable=RANK > 0, mininterval=5)
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(step, steps, args)
        loss = loss_of(network, step)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(args.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
            total += loss.detach() + 0 * norm  # not finite where either is not
        bar.update()
        if (step + 1) % LOG and step + 1 < steps:
            continue
        mean = total.item() / (step % LOG + 1)
        total.zero_()
        if not math.isfinite(mean):
            kept = f'{checkpoint} holds the last good state' if checkpoint.exists() else 'no checkpoint had been written'
            raise SystemExit(f'{name}: the loss or its gradient was not finite between steps {step + 1 - LOG} and {step + 1}: '
                             f'{kept}. Give a lower --lr, or a longer --warmup')
        curve['losses'].append((step + 1, round(mean, 5)))
        batch = args.vae_batch if name == 'vae' else args.dit_batch
        bar.set_postfix(loss=f'{mean:.4f}', images_per_s=f'{(step + 1 - first) * batch / (time.time() - start):.0f}')
        if probe and ((step + 1) % args.probe_every < LOG or step + 1 == steps):
            found = probe(ema)
            top = max(found, key=lambda row: row[2])
            curve['probes'].append((step + 1, found))
            say(f'{name} step {step + 1}: probe {top[2]:.2f} % at timestep {top[0]}, block {top[1]}')
            if best is None or top[2] >= best['accuracy']:
                best = dict(accuracy=top[2], step=step + 1, ema=copy.deepcopy(ema.state_dict()))
        if time.time() - saved > 60 * args.save_minutes or step + 1 == steps:
            save(step + 1)
            saved = time.time()
    bar.close()
    if best:
        say(f'{name}: keeps step {best["step"]}, whose probe is {best["accuracy"]:.2f} %')
        ema.load_state_dict(best['ema'])
    return ema, curve
