"""A toy model with a best timestep, in a module of its own: processes that a test spawns import it by its name."""
from unittest import mock

import torch
from diffusers import DDPMScheduler
from torch import nn

from mmaselect.extract import NoiseProcess
from mmaselect.extract.draws import draw
from mmaselect.selection import SelectionPolicy, TensorImages, sweep
from mmaselect.selection.scores import Score

BEST = 130
TIMES = (0, 40, 90, BEST, 200, 400, 999)
TWO_TAPS = ((40, 0.4), (200, 1))  # peaks: the second tap is the better one


class Planted(nn.Module):
    """A stand-in for Extractor whose feature is rich at t=130: there it shows the images' colours (which shifts and
    mirroring keep), plain and on a checkerboard, elsewhere fades to noise and to a flat map.

    Args:
        peaks (Sequence[tuple[int, float]]): Per tap, where it is richest and how rich it is there, in [0, 1].
    """

    token_stride = 1

    def __init__(self, peaks=((BEST, 1),)):
        super().__init__()
        self.process = NoiseProcess.from_scheduler(DDPMScheduler())
        self.taps = tuple((block, 'hidden') for block in range(len(peaks)))
        self.peaks, self.calls = peaks, []
        self.family = nn.Module()  # without weights
        self.family.pos_scale = None

    draw = staticmethod(draw)

    def encoder(self, images):
        self.calls.append(('encode', len(images)))
        return images

    def features(self, latent, t, noise):
        self.calls.append(('forward', len(latent)))
        colour = latent.mean((2, 3), keepdim=True)
        noise = noise + 100 * (latent - colour) * noise  # what it does to an image depends on its texture, or all would share it
        board = (torch.arange(latent.shape[2])[:, None] + torch.arange(latent.shape[3])) % 2
        maps = []
        for best, height in self.peaks:
            rich = height * torch.exp(-((torch.as_tensor(t).float() - best) / 60) ** 2).view(-1, 1, 1, 1)
            maps.append(rich * colour + 5 * (1 - rich) * noise.mean((2, 3), keepdim=True) + rich * board * (1 + colour) + 0.1)
        return tuple(maps)


class Given(Score):
    """The feature itself."""
    name = 'given'
    comparable = True

    def observe(self, maps, labels=None):
        return maps[0].flatten(1)[:, :1]

    def terms(self, rows, total):
        return rows, torch.ones_like(rows)


def swept(extractor, images, *, noise='seeded', noise_seed=0, draws=1, log=None, **options):
    """``sweep`` by a policy of these options: of all images and the extractor's own taps, without controls."""
    policy = SelectionPolicy(**{'score': 'half_consistency', 'score_taps': None, 'search': 'grid', 'plateau': 0.2,
                                'num_images': 2048, 'controls': (), **options})
    return sweep(extractor, images, policy, noise=noise, noise_seed=noise_seed, draws=draws, log=log)


def colours(count=24):
    """Images of one colour each, with a little texture."""
    generator = torch.Generator().manual_seed(5)
    colour = 0.2 * torch.randn(count, 3, 1, 1, generator=generator)
    return (colour + 0.01 * torch.randn(count, 3, 12, 20, generator=generator)).clamp(-1, 1)


# What two ranks are compared on with one: images, peaks, and options of the sweep.
RUNS = {
    'plain': (23, ((BEST, 1),), {}),
    'tap': (23, TWO_TAPS, dict(choose_tap=True)),
    'several': (23, ((BEST, 1),), dict(num_timesteps=3, gap=60)),
    'halved': (64, ((BEST, 1),), dict(search='halving')),
    'grown': (150, ((BEST, 1),), dict(num_images='auto')),
    'coherent': (23, ((BEST, 1),), dict(score='hfr_coherent')),
    'one image': (1, ((BEST, 1),), dict(score='hfr')),
}


def run(name):
    """The result of one of RUNS on this rank, and how many latents this rank has put through the model."""
    count, peaks, options = RUNS[name]
    model = Planted(peaks)
    result = swept(model, TensorImages(colours(count), batch_size=4), candidates=TIMES, **options)
    return result, sum(count for kind, count in model.calls if kind == 'forward')


def failing_on_the_first(rank):
    """A sweep whose control cannot be built on the first rank."""
    build = mock.Mock(side_effect=MemoryError('full')) if rank == 0 else lambda *_: Planted()
    with mock.patch('mmaselect.selection.sweep.randomised', build):
        return swept(Planted(), TensorImages(colours(23), batch_size=4), candidates=TIMES, controls=('random weights',))


def rank_of_two(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/init', rank=rank, world_size=2)
    for name in RUNS:
        result, forwards = run(name)
        result.save(f'{folder}/{name}.{rank}.json')
        torch.save(forwards, f'{folder}/{name}.{rank}.pt')
    failing_on_the_first(rank).save(f'{folder}/failing.{rank}.json')
    torch.distributed.barrier()  # else gloo of torch 2.1 may wait forever for a thread that waits for the interpreter
    torch.distributed.destroy_process_group()
