"""How the cost grows: of the folded forward pass with its tokens, of the sweep with its candidates and with its images.

    python benchmarks/growth.py

Fits time = a * n ** exponent to the medians (least squares of the logarithms), prints the exponents over all n and between the
last two, and writes benchmarks/results/growth.json.
"""
import math
import statistics
from functools import partial

import record
import sizes
import timing
import torch
from contenders import Setting, build_run
from tqdm import tqdm

from mmaselect.extract import Extractor, seeded_noise
from mmaselect.selection import SelectionPolicy, TensorImages, sweep

COLUMNS = {'what grows': 'name', 'n': 'n', **timing.TIMES, 'exponent': ('exponent', '.2f'),
           'between the last two': ('last_exponent', '.2f')}


def exponent(counts, times):
    """The slope of log(time) over log(count), by least squares."""
    return statistics.linear_regression([math.log(n) for n in counts], [math.log(ms) for ms in times]).slope


def forwards(args):
    """Number of tokens -> a folded forward pass to the last block."""
    block = sizes.SIZES[args.arch][0] - 1
    return {n: build_run('folded', Setting(args.arch, n, block, 'hidden', 1, args.device, args.dtype)) for n in args.tokens}


def sweeps(args):
    """Of a DiT on pixels, 64 tokens, to the middle block: number of candidates -> a sweep, and number of images -> a sweep."""
    torch.manual_seed(0)
    arch = sizes.arch(args.arch, 64, vae=False, channels=3)
    extractor = Extractor.from_arch(arch, [(sizes.middle(args.arch), 'hidden')])
    extractor.to(args.device, getattr(torch, args.dtype)).eval().requires_grad_(False)
    pictures = (0.5 * seeded_noise((max(args.images), 3, 16, 16), 0)).clamp(-1, 1)
    policy = partial(SelectionPolicy, num_images=len(pictures), controls=())
    by_candidates = {n: partial(sweep, extractor, TensorImages(pictures[:args.images[0]]), policy(candidates=n))
                     for n in args.candidates}
    by_images = {n: partial(sweep, extractor, TensorImages(pictures[:n]), policy(candidates=args.candidates[0]))
                 for n in args.images}
    return by_candidates, by_images


def measure(name, contenders, args):
    """A row per n."""
    times = timing.rounds(contenders, args.device, repeats=args.repeats, seconds=args.seconds)
    found = {n: timing.summary(own) for n, own in times.items()}
    medians = [one['median_ms'] for one in found.values()]
    fits = dict(exponent=exponent(found, medians), last_exponent=exponent(list(found)[-2:], medians[-2:]))
    return [dict(name=name, n=n, arch=sizes.name(args.arch), device=args.device, dtype=args.dtype, **one, **fits)
            for n, one in found.items()]


def main(argv=None):
    parser = timing.arguments(__doc__)
    parser.add_argument('--arch', choices=sizes.SIZES, default='S')
    parser.add_argument('--tokens', type=int, nargs='+', default=[64, 256, 1024, 4096], help='squares, ascending, two at least')
    parser.add_argument('--candidates', type=int, nargs='+', default=[4, 8, 16, 32], help='ascending, two at least')
    parser.add_argument('--images', type=int, nargs='+', default=[4, 8, 16, 32], help='ascending, two at least')
    args = timing.parse(parser, argv, 'growth', arch='tiny', tokens=[4, 16], candidates=[2, 4], images=[2, 4], repeats=1,
                        seconds=0)
    head, rows = record.head(), []
    by_candidates, by_images = sweeps(args)
    for name, contenders in tqdm([('tokens', forwards(args)), ('candidates', by_candidates), ('images', by_images)],
                                 desc='growth', unit=' fits'):
        rows += measure(name, contenders, args)
        record.write(args.out, head, rows)
    print(f'{timing.table(rows, COLUMNS)}\n\nwritten to {args.out}')


if __name__ == '__main__':
    main()
