"""The forward pass from a latent to a tap: this project, folded or not, beside diffusers, timm and the matrix products alone.

    python benchmarks/forward.py

prints a table and writes benchmarks/results/forward.json. The contenders take turns within each round; ratios are medians over
the rounds. That all but the matrix products give the same features is checked first. On a GPU:

    python benchmarks/forward.py --device cuda --dtype bfloat16 --attention flash_attention

What it costs that diffusers' own forward is read, beside its modules called by hand up to the tap (the column 'to by hand'):

    python benchmarks/forward.py --contenders unfolded 'by hand' --batches 8 --memory none --out reader.json
"""
import record
import sizes
import timing
import torch
import torch._dynamo
from contenders import CONTENDERS, Setting, build, build_run
from tqdm import tqdm

LIMIT, PEER, HAND = 'matrix products', 'diffusers, hooks', 'by hand'
TOLERANCE = dict(float32=1e-4, bfloat16=0.1)  # of the greatest value
COLUMNS = {'tap': 'tap', 'batch': 'batch', 'contender': 'name', **timing.TIMES, 'to the limit': ('ratio_to_limit', '.2f'),
           'to diffusers': ('ratio_to_diffusers', '.2f'), 'to by hand': ('ratio_to_by_hand', '.3f'),
           'parameters, M': ('millions', '.1f'), 'peak MiB': ('peak_mib', '.0f')}


def check(features, dtype):
    """Raises AssertionError where a contender's features are not those of the unfolded DiT."""
    reference = features['unfolded'].float()
    for name, found in features.items():
        error = ((found.float() - reference).abs().max() / reference.abs().max()).item()
        assert found.shape == reference.shape and error < TOLERANCE[dtype], f'the features of {name!r} are off by {error:.2g}'


def measure(setting, names, args):
    """A row per contender."""
    runs, parameters, features = {}, {}, {}
    for name in names:
        run, parameters[name] = build(name, setting)
        try:
            features[name] = run()
            runs[name] = run
        except torch._dynamo.exc.TorchDynamoException as error:  # a machine without a compiler
            tqdm.write(f'{name}: {timing.NOT_MEASURED}: {str(error).splitlines()[0]}')
    features.pop(LIMIT, None)
    if 'unfolded' in features:
        check(features, setting.dtype)
    features.clear()
    times = timing.rounds(runs, setting.device, repeats=args.repeats, seconds=args.seconds)
    measured = list(runs)
    runs.clear()
    peaks = {name: timing.peak_mib(setting.device, build_run, name, setting) for name in measured if args.memory == 'fresh'}
    return [dict(name=name, arch=sizes.name(setting.size), tap=f'{setting.block}.{setting.tap}', batch=setting.batch,
                 tokens=setting.tokens, device=setting.device, dtype=setting.dtype, attention=setting.attention,
                 **timing.summary(times.get(name)), ratio_to_limit=timing.ratio(times, name, LIMIT),
                 ratio_to_diffusers=timing.ratio(times, name, PEER), ratio_to_by_hand=timing.ratio(times, name, HAND),
                 parameters=parameters[name], peak_mib=peaks.get(name))
            for name in names]


def report(rows):
    return timing.table([dict(row, millions=row['parameters'] / 1e6) for row in rows], COLUMNS)


def main(argv=None):
    parser = timing.arguments(__doc__)
    parser.add_argument('--arch', choices=sizes.SIZES, default='B')
    parser.add_argument('--tokens', type=int, default=256, help='a square')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--contenders', nargs='+', choices=CONTENDERS, default=list(CONTENDERS), metavar='NAME',
                        help=', '.join(CONTENDERS))
    parser.add_argument('--attention', choices=timing.ATTENTION, default='any', help="backend of torch's attention")
    parser.add_argument('--backend', default='inductor', help='of torch.compile')
    parser.add_argument('--memory', choices=('fresh', 'none'), default='fresh',
                        help='whether to measure the peak of each contender, in a fresh process')
    args = timing.parse(parser, argv, 'forward', arch='tiny', tokens=16, batches=[1, 2], repeats=1, seconds=0, backend='eager',
                        memory='none')
    head, rows = record.head(), []
    half = sizes.middle(args.arch)
    settings = [Setting(args.arch, args.tokens, block, tap, batch, args.device, args.dtype, args.attention, args.backend)
                for block, tap in ((sizes.SIZES[args.arch][0] - 1, 'hidden'), (half, 'hidden'), (half, 'query'))
                for batch in args.batches]
    for setting in tqdm(settings, desc='forward', unit=' settings'):
        rows += measure(setting, args.contenders, args)
        record.write(args.out, head, rows)
    print(f'{report(rows)}\n\nwritten to {args.out}')


if __name__ == '__main__':
    main()
