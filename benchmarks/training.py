"""A training iteration of a classifier on DiTBackbone, beside the same classifier on mmpretrain's own VisionTransformer.

    python benchmarks/training.py

Frozen and fine-tuned, on cached latents and with the VAE, all with the same pooling, LinearClsHead, AdamW, tokens and batch; both
backbones are given latents, unless the VAE makes them of images. Prints a table and writes benchmarks/results/training.json.
"""
import record
import sizes
import timing
import torch
from mmengine.optim import OptimWrapper
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from tqdm import tqdm

import mmaselect.openmm  # noqa: F401, registers DiTBackbone

CLASSES = 100
PEER, CACHED, WITH_VAE = 'mmpretrain ViT', 'ours, cached latents', 'ours, VAE'
MODES = ('frozen', 'fine-tuned')
COLUMNS = {'mode': 'mode', 'contender': 'name', **timing.TIMES, 'to mmpretrain': ('ratio_to_mmpretrain', '.2f'),
           "the VAE's share": ('vae_share', '.0%'), 'parameters, M': ('millions', '.1f'),
           'trained, M': ('trained_millions', '.2f'), 'peak MiB': ('peak_mib', '.0f')}


def backbone(name, mode, args):
    """A config, and what its input is: channels and pixels along each side."""
    depth, width, heads = sizes.SIZES[args.arch]
    edge = sizes.PATCH * sizes.side(args.tokens)  # of the latents
    if name == PEER:
        arch = dict(embed_dims=width, num_layers=depth, num_heads=heads, feedforward_channels=4 * width)
        return dict(type='VisionTransformer', arch=arch, img_size=edge, patch_size=sizes.PATCH, in_channels=4, final_norm=False,
                    with_cls_token=False, out_type='featmap', frozen_stages=depth if mode == 'frozen' else -1), (4, edge)
    vae = name == WITH_VAE
    return dict(type='mmaselect.DiTBackbone', arch=sizes.arch(args.arch, args.tokens, vae=vae), timestep=100,
                frozen=mode == 'frozen'), ((3, 8 * edge) if vae else (4, edge))


def build(name, mode, args):
    """A training step, and the classifier."""
    torch.manual_seed(0)
    config, (channels, edge) = backbone(name, mode, args)
    head = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=sizes.SIZES[args.arch][1])
    model = ImageClassifier(config, neck=dict(type='GlobalAveragePooling'), head=head).to(args.device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OptimWrapper(torch.optim.AdamW(trained, lr=1e-4))
    inputs = torch.rand(args.batch, channels, edge, edge, device=args.device) * 2 - 1
    data = dict(inputs=inputs, data_samples=[DataSample().set_gt_label(index % CLASSES) for index in range(args.batch)])

    def step():
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.dtype == 'bfloat16'):
            return model.train_step(data, optimizer)
    return step, model


def build_step(name, mode, args):
    return build(name, mode, args)[0]


def measure(mode, args):
    """A row per contender."""
    steps, models = {}, {}
    for name in (PEER, CACHED, WITH_VAE):
        steps[name], models[name] = build(name, mode, args)
    times = timing.rounds(steps, args.device, repeats=args.repeats, seconds=args.seconds)
    sums = {name: (sizes.count(model.parameters()), sizes.count(p for p in model.parameters() if p.requires_grad))
            for name, model in models.items()}
    steps.clear()
    models.clear()
    share = {WITH_VAE: 1 - timing.ratio(times, CACHED, WITH_VAE), CACHED: 0.0, PEER: 0.0}
    return [dict(name=name, mode=mode, arch=sizes.name(args.arch), tap=f'{sizes.SIZES[args.arch][0] - 1}.hidden',
                 batch=args.batch, tokens=args.tokens, device=args.device, dtype=args.dtype, **timing.summary(own),
                 ratio_to_mmpretrain=timing.ratio(times, name, PEER), vae_share=share[name], parameters=sums[name][0],
                 trained_parameters=sums[name][1],
                 peak_mib=timing.peak_mib(args.device, build_step, name, mode, args) if args.memory == 'fresh' else None)
            for name, own in times.items()]


def report(rows):
    return timing.table([dict(row, millions=row['parameters'] / 1e6, trained_millions=row['trained_parameters'] / 1e6)
                         for row in rows], COLUMNS)


def main(argv=None):
    parser = timing.arguments(__doc__)
    parser.add_argument('--arch', choices=sizes.SIZES, default='B')
    parser.add_argument('--tokens', type=int, default=64, help='a square')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--memory', choices=('fresh', 'none'), default='fresh',
                        help='whether to measure the peak of each contender, in a fresh process')
    args = timing.parse(parser, argv, 'training', arch='tiny', tokens=16, batch=2, repeats=1, seconds=0, memory='none')
    head, rows = record.head(), []
    for mode in tqdm(MODES, desc='training', unit=' modes'):
        rows += measure(mode, args)
        record.write(args.out, head, rows)
    print(f'{report(rows)}\n\nwritten to {args.out}')


if __name__ == '__main__':
    main()
