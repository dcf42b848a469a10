"""What every result carries: the command, the commit, the machine and the versions that it comes from."""
import csv
import gzip
import hashlib
import io
import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from mmaselect.environment import commit
from mmaselect.files import atomic

ROOT = Path(__file__).parents[1]


def head():
    """Of a run that begins now: a commit made while it lasts is not the one that is measured."""
    return dict(command=shlex.join(['python', *sys.argv]), commit=commit(), machine=machine(), cores=os.cpu_count(),
                threads=torch.get_num_threads(), python=platform.python_version(), torch=torch.__version__,
                diffusers=version('diffusers'))


def machine():
    """The processor by name, and the GPU where there is one."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')][:1] or [platform.processor()]
    return ', '.join(names + ([torch.cuda.get_device_name()] if torch.cuda.is_available() else []))


def write(path, head, rows):
    """Writes a file that appears only when it is whole: JSON with a line per row, or for many rows a .csv.gz."""
    with atomic(path) as part:
        if Path(path).suffix == '.gz':
            with part.open('wb') as file, gzip.GzipFile('', 'wb', fileobj=file, mtime=0) as packed, \
                    io.TextIOWrapper(packed, newline='') as text:
                text.write(f'# {json.dumps(head)}\n')
                table = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator='\n')
                table.writeheader()
                table.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        else:
            lines = ',\n'.join(json.dumps(row) for row in rows)
            part.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')


def read(path):
    """The head and the rows that ``write`` wrote, with every value's type."""
    if Path(path).suffix == '.gz':
        with gzip.open(path, 'rt', newline='') as text:
            head = json.loads(text.readline().removeprefix('# '))
            return head, [{key: _value(cell) for key, cell in row.items()} for row in csv.DictReader(text)]
    head = json.loads(Path(path).read_text())
    return head, head.pop('rows')


def _value(cell):
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _cell(value):
    """A value as JSON; a text as it is where it cannot be taken for JSON."""
    return value if isinstance(value, str) and _value(value) is value else json.dumps(value)


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
