"""A toy model with a best timestep, in a module of its own: processes that a test spawns import it by its name."""
import torch
from diffusers import DDPMScheduler
from torch import nn

from mmaselect.extract import NoiseProcess
from mmaselect.selection import TensorImages, sweep

BEST = 130
TIMES = (0, 40, 90, BEST, 200, 400, 999)


class Planted(nn.Module):
    """A stand-in for FeatureExtractor whose feature is rich at t=130: there it shows the images' colours (which shifts and
    mirroring keep) and a checkerboard, elsewhere fades to noise and to a flat map."""
    taps = ((0, 'hidden'),)

    def __init__(self):
        super().__init__()
        self.process = NoiseProcess.from_scheduler(DDPMScheduler())
        self.calls = []

    def encoder(self, images):
        self.calls.append(('encode', len(images)))
        return images

    def features(self, latent, t, noise):
        self.calls.append(('forward', len(latent)))
        rich = torch.exp(-((t.float() - BEST) / 60) ** 2)[:, None, None, None]
        colour = latent.mean((2, 3), keepdim=True)
        board = (torch.arange(latent.shape[2])[:, None] + torch.arange(latent.shape[3])) % 2
        return (rich * colour + 0.3 * (1 - rich) * noise.mean((2, 3), keepdim=True) + rich * board + 0.1,)


def colours(count=24):
    """Images of one colour each, with a little texture."""
    generator = torch.Generator().manual_seed(5)
    colour = 0.2 * torch.randn(count, 3, 1, 1, generator=generator)
    return (colour + 0.01 * torch.randn(count, 3, 12, 20, generator=generator)).clamp(-1, 1)


def rank_of_two(rank, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/init', rank=rank, world_size=2)
    model = Planted()
    result = sweep(model, TensorImages(colours(23), batch_size=4), candidates=TIMES)
    result.save(f'{folder}/{rank}.json')
    torch.save(sum(count for kind, count in model.calls if kind == 'forward'), f'{folder}/{rank}.pt')
    torch.distributed.destroy_process_group()
