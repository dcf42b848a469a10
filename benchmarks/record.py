"""What every result carries: the command, the commit and the machine that it comes from."""
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from mmaselect.files import atomic

ROOT = Path(__file__).parents[1]


def head():
    """Of a run that begins now: a commit made while it lasts is not the one that is measured."""
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return dict(command=shlex.join(['python', *sys.argv]), commit=commit, cores=os.cpu_count(), torch=torch.__version__)


def write(path, head, rows):
    """JSON; the file appears only when it is whole."""
    with atomic(path) as part:
        part.write_text(json.dumps(dict(head, rows=rows), indent=1) + '\n')
