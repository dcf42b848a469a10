"""Imported into a tool's process by its config: notes what happens, and kills the process where the test wants it.

SPY_LOG is a folder; each rank writes a line per event into its own file there: 'sweep', 'features N' for N latents through
the DiT, 'forward T' for a batch through the backbone at timestep T. SPY_KILL is 'sweep', 'train' or 'save': the process ends
itself by SIGKILL, which nothing can catch, in the middle of that.
"""
import os
import signal
from pathlib import Path

from mmengine.fileio.backends import LocalBackend
from yapf.yapflib import yapf_api

from mmaselect.extract import Extractor
from mmaselect.openmm import DiTBackbone, hook

yapf_api.FormatCode = lambda text, *_, **__: (text, True)  # slow, see runs.py
LOG = Path(os.environ['SPY_LOG'], f"rank{os.environ.get('RANK', 0)}.txt")
counts = dict.fromkeys(('sweep', 'train', 'save'), 0)


def note(event):
    with LOG.open('a') as file:
        file.write(f'{event}\n')


def die(where, at):
    """Ends the process when it comes here for the ``at``-th time."""
    counts[where] += 1
    if os.environ.get('SPY_KILL') == where and counts[where] == at:
        os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, watch):
    inner = getattr(owner, name)

    def watched(*args, **kwargs):
        watch(*args, **kwargs)
        return inner(*args, **kwargs)
    setattr(owner, name, watched)


def on_features(extractor, latent, *_, **__):
    note(f'features {len(latent)}')
    die('sweep', 2)


def on_forward(backbone, images):
    note(f'forward {backbone.chosen}')
    if backbone.training:
        die('train', 3)


def on_put(backend, content, path):
    if str(path).endswith('.pth') and os.environ.get('SPY_KILL') == 'save' and counts['save'] == 1:
        Path(path).write_bytes(content[:len(content) // 2])
    if str(path).endswith('.pth'):
        die('save', 2)


before(hook, 'sweep', lambda *_, **__: note('sweep'))
before(Extractor, 'features', on_features)
before(DiTBackbone, 'forward', on_forward)
before(LocalBackend, 'put', on_put)
