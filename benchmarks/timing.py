"""Times and memory of contenders, side by side, and tables of them in Markdown; for the programs that ``make bench`` runs."""
import argparse
import contextlib
import ctypes
import gc
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from record import ROOT

NOT_MEASURED = 'not measured'
MOST = 10  # times as many rounds as asked for, where there is time
ATTENTION = ('any', 'flash_attention', 'efficient_attention', 'cudnn_attention', 'math')
PRELOAD = ['timm', 'mmaselect.openmm', 'mmpretrain.models']  # what takes seconds to import


def arguments(program):
    """A parser with the options that all programs have; ``program`` is the module's docstring."""
    parser = argparse.ArgumentParser(description=program.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='tiny sizes: shows that it runs, not how fast')
    parser.add_argument('--repeats', type=int, default=5, help='rounds at least, in each of which every contender runs once')
    parser.add_argument('--seconds', type=float, default=20,
                        help=f'rounds go on, up to {MOST} times as many, until a setting took so long')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--out', type=Path, help='JSON; by default in benchmarks/results, of --quick in work_dirs/bench')
    return parser


def parse(parser, argv, name, **quick):
    """The arguments, of which ``quick`` are the defaults where --quick is given, and ``out`` is a path in any case."""
    if parser.parse_args(argv).quick:
        parser.set_defaults(**quick)
    args = parser.parse_args(argv)
    kind = torch.device(args.device).type
    folder = ROOT / 'work_dirs' / 'bench' if args.quick else ROOT / 'benchmarks' / 'results'
    args.out = args.out or folder / (f'{name}.json' if kind == 'cpu' else f'{name}_{kind}.json')
    return args


def attention(backend):
    """A context in which torch's attention is of this one backend, or of the one that torch picks."""
    if backend == 'any':
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    return sdpa_kernel(getattr(SDPBackend, backend.upper()))


def milliseconds(run, device):
    """Of one call."""
    if torch.device(device).type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def rounds(contenders, device, *, repeats, seconds):
    """Times the contenders in turn, round after round, so that what slows the machine down slows all of them.

    Args:
        contenders (dict[str, Callable]): What to call, each once before the first round.
        device (str): Where they run.
        repeats (int): Rounds at least.
        seconds (float): As long as they took less there are more, up to ten times as many.

    Returns:
        dict[str, list[float]]: Milliseconds, one per round.
    """
    for run in contenders.values():
        run()
    times, start = {name: [] for name in contenders}, time.perf_counter()
    for count in range(MOST * repeats):
        if count >= repeats and time.perf_counter() - start > seconds:
            break
        for name, run in contenders.items():
            times[name].append(milliseconds(run, device))
    return times


def summary(times):
    """Median, least and greatest of milliseconds, and how many there are; None where there are none."""
    if times is None:
        return dict(median_ms=None, min_ms=None, max_ms=None, rounds=0)
    return dict(median_ms=statistics.median(times), min_ms=min(times), max_ms=max(times), rounds=len(times))


def ratio(times, name, other):
    """The median over the rounds of one contender's time by another's; None where one of them was not timed."""
    if not {name, other} <= times.keys():
        return None
    return statistics.median(own / base for own, base in zip(times[name], times[other], strict=True))


def processes(device):
    """A context whose processes begin with nothing but the imports done: forks of a server that only imports. With a GPU they do
    the imports themselves, since some of these ask CUDA what there is, and a fork cannot use it then."""
    if torch.device(device).type == 'cuda':
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOAD)
    return context


def peak_mib(device, build, *args):
    """Memory at the peak of a call of ``build(*args)``, with all that it holds, in MiB; None where this cannot be known.

    Measured in a second call, so that what is done once does not count. On the CPU that is the memory of data, without the
    libraries' code, of a process of its own; on a GPU what torch allocates there beyond what it held before.
    """
    if torch.device(device).type == 'cuda':
        return _peak(device, build, args)
    with ProcessPoolExecutor(1, mp_context=processes(device)) as pool:
        return pool.submit(_peak, device, build, args).result()


def _peak(device, build, args):
    on_gpu, reset = torch.device(device).type == 'cuda', Path('/proc/self/clear_refs')
    if not on_gpu and not os.access(reset, os.W_OK):
        return None  # not Linux
    before = torch.cuda.memory_allocated(device) if on_gpu else _resident('RssAnon')
    run = build(*args)
    run()
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    reset.write_text('5')  # VmHWM, the greatest memory so far, starts from now: man 5 proc
    run()
    return (_resident('VmHWM') - _resident('RssFile') - _resident('RssShmem') - before) / 1024


def _resident(field):
    """KiB of this process, by the field's name in /proc/self/status."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))


def table(rows, columns):
    """Rows as Markdown. ``columns`` maps a heading to a key of the rows, or to a key and its format."""
    def cell(row, column):
        key, form = (column, '') if isinstance(column, str) else column
        return NOT_MEASURED if row[key] is None else format(row[key], form)

    lines = [list(columns), ['---'] * len(columns)]
    lines += [[cell(row, column) for column in columns.values()] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


TIMES = {'median ms': ('median_ms', '.1f'), 'min': ('min_ms', '.1f'), 'max': ('max_ms', '.1f')}
