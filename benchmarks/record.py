"""What every result carries: the command, the commit, the machine and the versions that it comes from."""
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from mmaselect.files import atomic

ROOT = Path(__file__).parents[1]


def head():
    """Of a run that begins now: a commit made while it lasts is not the one that is measured."""
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return dict(command=shlex.join(['python', *sys.argv]), commit=commit, machine=machine(), cores=os.cpu_count(),
                threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__,
                diffusers=version('diffusers'))


def machine():
    """The processor by name, and the GPU where there is one."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')][:1] or [platform.processor()]
    return ', '.join(names + ([torch.cuda.get_device_name()] if torch.cuda.is_available() else []))


def write(path, head, rows):
    """JSON, a line per row; the file appears only when it is whole."""
    lines = ',\n'.join(json.dumps(row) for row in rows)
    with atomic(path) as part:
        part.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')


def digest(*patterns):
    """Of the sources whose paths match."""
    found = hashlib.blake2b(digest_size=16)
    for source in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        found.update(source.read_bytes())
    return found.hexdigest()


def kept(path, asked, make):
    """What ``make()`` returns, for JSON; read from the file ``path``, if any, where the same was asked before."""
    if path is None:
        return make()
    if path.is_file():
        found = json.loads(path.read_text())
        if found['asked'] == asked:
            return found['found']
    found = make()
    with atomic(path) as part:
        part.write_text(json.dumps(dict(asked=asked, found=found)))
    return found
