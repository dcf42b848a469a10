"""Puts the four files of Fashion-MNIST under one folder, from wherever this machine can get them.

Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, MIT licence) is tried, in order, from the Debian
package's own folder, from Debian's archive (``apt-get download``, no root needed) and from torchvision's mirror.

    python tools/dataset_converters/fashion_mnist.py data/fashion_mnist
"""
import argparse
import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path

FILES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')
PACKAGE = 'dataset-fashion-mnist'
SYSTEM = Path('/usr/share/datasets/fashion-mnist')


def complete(folder):
    return all((folder / f'{name}.gz').is_file() for name in FILES)


def from_debian(scratch):
    """Unpacks Debian's package below ``scratch``; None where there is no apt or no such package."""
    if not shutil.which('apt-get') or not shutil.which('dpkg'):
        return None
    for command in (['apt-get', 'download', PACKAGE], ['apt-get', 'update', '-qq'], ['apt-get', 'download', PACKAGE]):
        subprocess.run(command, cwd=scratch, capture_output=True, check=False)
        packages = list(scratch.glob(f'{PACKAGE}*.deb'))
        if packages:
            subprocess.run(['dpkg', '-x', str(packages[0]), str(scratch / 'root')], check=True)
            return scratch / 'root' / SYSTEM.relative_to('/')
    return None


def from_torchvision(scratch):
    from torchvision.datasets import FashionMNIST
    try:
        FashionMNIST(str(scratch), download=True)
    except (RuntimeError, OSError):
        return None
    return scratch / 'FashionMNIST' / 'raw'


def install(source, folder):
    """Unpacks each .gz of ``source`` into ``folder``; a file appears only when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        part = folder / f'{name}.part'
        with gzip.open(source / f'{name}.gz') as packed, open(part, 'wb') as plain:
            shutil.copyfileobj(packed, plain)
        part.replace(folder / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path, help='where the four idx files go')
    folder = parser.parse_args().folder
    if all((folder / name).is_file() for name in FILES):
        print(f'Fashion-MNIST is in {folder}')
        return
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        # apt-get drops its privileges to the user _apt, who must be able to write here.
        scratch.chmod(0o777)
        sources = (lambda: SYSTEM, lambda: from_debian(scratch), lambda: from_torchvision(scratch))
        for find in sources:
            source = find()
            if source and complete(source):
                install(source, folder)
                print(f'Fashion-MNIST is in {folder}')
                return
    raise SystemExit(f"Fashion-MNIST was not found: neither {SYSTEM}, nor Debian's package {PACKAGE}, nor torchvision's "
                     f'mirror could be read. Put {", ".join(FILES)} into {folder} by hand.')


if __name__ == '__main__':
    main()
