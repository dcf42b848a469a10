"""The sweep of this project beside a naive one, which must choose the same; and on one and on two processes.

    python benchmarks/sweep.py

The naive sweep encodes each image anew for each candidate and runs diffusers' whole transformer on it, alone. Each process has
one thread. Prints a table and writes benchmarks/results/sweep.json.
"""
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import record
import sizes
import timing
import torch
import torch.distributed as dist
import torch.nn.functional as F
from contenders import hooked, on_grid
from torch.multiprocessing import start_processes
from tqdm import tqdm

from mmaselect.extract import Extractor, seeded_noise
from mmaselect.extract.noise import mix
from mmaselect.openmm.processes import end
from mmaselect.selection import SelectionPolicy, TensorImages, sweep
from mmaselect.selection.candidates import candidate_grid
from mmaselect.selection.scores import build as build_score
from mmaselect.selection.views import augment

SEED = 0
CONTENDERS = {'naive': 1, 'ours': 1, 'ours, 2 processes': 2}  # processes
COLUMNS = {'contender': 'name', 'processes': 'processes', **timing.TIMES, 'to naive': ('ratio_to_naive', '.3f'),
           'times faster': ('speedup', '.1f'), 'forward passes': 'forwards', 'chosen t': 'timestep'}


@dataclass(frozen=True)
class Setting:
    size: str
    tokens: int
    images: int
    candidates: int
    score: str
    device: str
    dtype: str

    def extractor(self):
        torch.manual_seed(SEED)
        made = Extractor.from_arch(sizes.arch(self.size, self.tokens, vae=True), [(sizes.middle(self.size), 'hidden')])
        made.encoder.drop_decoder()
        return made.to(self.device, getattr(torch, self.dtype)).eval().requires_grad_(False)

    def pictures(self):
        """Images (N, 3, H, W) in [-1, 1] of coarse colours with some grain."""
        edge = sizes.PIXELS * sizes.side(self.tokens)
        coarse = F.interpolate(seeded_noise((self.images, 3, 4, 4), SEED, 'coarse'), (edge, edge), mode='bilinear')
        return (0.5 * coarse + 0.1 * seeded_noise(coarse.shape, SEED, 'grain')).clamp(-1, 1)


@torch.no_grad()
def naive(extractor, images, candidates, score):
    """What one writes first: (timestep, scores, forward passes). Views and their noise are those of ``sweep``."""
    (block, tap), = extractor.taps
    transformer, process = extractor.family.model, extractor.process
    device, dtype = transformer.device, transformer.dtype
    forward, score, forwards, values = hooked(transformer, block, tap), build_score(score), 0, []
    for timestep in candidates:
        t, rows = torch.tensor([timestep]), []
        for index, image in enumerate(images):
            maps = []
            for view in range(score.views):
                seen = image
                if score.augmented:
                    seen, _ = augment(image, torch.Generator().manual_seed(mix(SEED, index, view, 'augmentation')))
                latent = extractor.encoder(seen[None].to(device))
                noise = extractor.draw(latent, draws=score.views)[view]
                tokens = forward(process.add(latent, t, noise).to(dtype), t.to(device))
                maps.append(on_grid(tokens, [side // extractor.family.patch_size for side in latent.shape[-2:]]))
                forwards += 1
            rows.append(score.observe(maps).float().cpu())
        values.append(score.value(torch.cat(rows).double()))
    return candidates[values.index(max(values))], values, forwards


def work(rank, setting, processes, how, folder):
    """What one process of a contender does; the first writes the outcome."""
    torch.set_num_threads(1)
    if torch.device(setting.device).type == 'cuda':
        torch.cuda.set_device(rank % torch.cuda.device_count())
        torch.backends.cudnn.allow_tf32 = False  # with it, a convolution of many images rounds other than one of few, by 1e-3
    if processes > 1:
        dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=processes)
    extractor, pictures = setting.extractor(), setting.pictures()
    candidates = candidate_grid(len(extractor.process), setting.candidates)
    extractor(pictures[:1].to(setting.device), candidates[0])  # warms up
    if processes > 1:
        dist.barrier()
    start = time.perf_counter()
    if how == 'naive':
        timestep, scores, forwards = naive(extractor, pictures, candidates, setting.score)
    else:
        result = sweep(extractor, TensorImages(pictures), SelectionPolicy(
            score=setting.score, candidates=candidates, plateau=0, search='grid', score_taps=None,
            num_images=len(pictures), controls=(), seed=SEED))
        timestep, forwards = result.timestep, result.forwards
        scores = [candidate.score for candidate in result.candidates]
    seconds = time.perf_counter() - start
    if rank == 0:
        outcome = dict(ms=1000 * seconds, timestep=timestep, scores=scores, forwards=forwards)
        Path(folder, 'outcome.json').write_text(json.dumps(outcome))
    end()


def run(setting, name):
    """The outcome of a contender, in fresh processes."""
    method = timing.processes(setting.device).get_start_method()
    with tempfile.TemporaryDirectory() as folder:
        how, processes = name.partition(',')[0], CONTENDERS[name]
        start_processes(work, (setting, processes, how, folder), nprocs=processes, start_method=method)
        return json.loads(Path(folder, 'outcome.json').read_text())


def agree(outcomes, tolerance):
    """Raises AssertionError where the contenders' choices or scores differ."""
    expected = outcomes['naive']
    for name, found in outcomes.items():
        assert found['timestep'] == expected['timestep'], f"{name} chose {found['timestep']}, naive {expected['timestep']}"
        worst = max(abs(a - b) for a, b in zip(found['scores'], expected['scores'], strict=True))
        assert worst <= tolerance, f"{name}'s scores are off by {worst:.2g}"


def measure(setting, repeats):
    """A row per contender. They take turns, round after round."""
    times = {name: [] for name in CONTENDERS}
    for _ in tqdm(range(repeats), desc='sweep', unit=' rounds'):
        outcomes = {name: run(setting, name) for name in CONTENDERS}
        agree(outcomes, 1e-3 if setting.dtype == 'float32' else 5e-2)
        for name, outcome in outcomes.items():
            times[name].append(outcome['ms'])
    return [dict(name=name, processes=CONTENDERS[name], arch=sizes.name(setting.size), tap=f'{sizes.middle(setting.size)}.hidden',
                 **{key: value for key, value in asdict(setting).items() if key != 'size'}, batch=setting.images,
                 **timing.summary(own), ratio_to_naive=timing.ratio(times, name, 'naive'),
                 speedup=timing.ratio(times, 'naive', name), forwards=outcomes[name]['forwards'],
                 timestep=outcomes[name]['timestep'])
            for name, own in times.items()]


def main(argv=None):
    parser = timing.arguments(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument('--arch', choices=sizes.SIZES, default='B')
    parser.add_argument('--tokens', type=int, default=64, help='a square')
    parser.add_argument('--images', type=int, default=12,
                        help='of 8 or fewer the 16 components of view_consistency are all there are, and all timesteps alike')
    parser.add_argument('--candidates', type=int, default=8)
    parser.add_argument('--score', choices=('view_consistency', 'hfr'), default='view_consistency')
    args = timing.parse(parser, argv, 'sweep', arch='tiny', tokens=16, candidates=3, repeats=1)
    head = record.head()
    setting = Setting(args.arch, args.tokens, args.images, args.candidates, args.score, args.device, args.dtype)
    rows = measure(setting, args.repeats)
    record.write(args.out, head, rows)
    print(f'{timing.table(rows, COLUMNS)}\n\nwritten to {args.out}')


if __name__ == '__main__':
    main()
