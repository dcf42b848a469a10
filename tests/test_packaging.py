"""The wheel: what `mim train mmaselect` needs is in it, and it trains where the repository is not."""
import shutil
import sys
import zipfile

import pytest
import runs

from mmaselect import __version__

NAME = 'aselect_fashion_scenes'
BUILD = '''
import os, sys, tarfile
from setuptools import build_meta
out = sys.argv.pop()
with tarfile.open(os.path.join(out, build_meta.build_sdist(out))) as archive:
    root = archive.getnames()[0]
    archive.extractall(out)
os.chdir(os.path.join(out, root))
build_meta.build_wheel(out)
'''


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from the source distribution, which is built from a copy of the repository."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    for name in ('mmaselect', 'configs', 'tools'):
        shutil.copytree(runs.ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(runs.ROOT / name, source)
    runs.run('env', '-C', source, sys.executable, '-c', BUILD, folder)
    assert not [path for path in source.rglob('*') if path.is_symlink() or path.name == '.mim']
    found, = folder.glob('*.whl')
    return found


def test_it_holds_the_package_the_configs_and_the_tools(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split('/')[0].endswith('.dist-info')}
    expected = {str(path.relative_to(runs.ROOT)) for path in (runs.ROOT / 'mmaselect').rglob('*')
                if path.suffix in ('.py', '.html')}
    for folder in ('configs', 'tools'):
        expected |= {f'mmaselect/.mim/{path.relative_to(runs.ROOT)}' for path in (runs.ROOT / folder).rglob('*')
                     if path.is_file() and '__pycache__' not in path.parts}
    assert inside == expected
    assert {'mmaselect/.mim/tools/train.py', 'mmaselect/.mim/tools/test.py'} < inside


def test_the_citation_is_of_this_version():
    assert f'\nversion: {__version__}\n' in (runs.ROOT / 'CITATION.cff').read_text()


@pytest.mark.slow
def test_it_trains_as_mim_would_train_it(wheel, data, tmp_path):
    """By the command that `mim train mmaselect CONFIG` of openmim 0.3.9 ends in. openmim itself needs an old setuptools."""
    site = tmp_path / 'site'
    runs.run(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', site, wheel)
    mim = site / 'mmaselect' / '.mim'
    (site / 'where.py').write_text("import mmaselect\nprint('trained by', mmaselect.__file__)\n")
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = ['{mim}/configs/dit_{NAME}.py']\ncustom_imports = dict(imports=['where', 'mmaselect.openmm'])\n")
    options = {**runs.options(NAME, data), 'train_cfg.max_iters': 1}
    printed = runs.run(sys.executable, mim / 'tools' / 'train.py', config, '--launcher', 'none', '--work-dir', tmp_path / 'run',
                       '--no-validate', *runs.words(options), PYTHONPATH=str(site))
    assert f'trained by {site}/mmaselect/__init__.py' in printed
    assert (tmp_path / 'run' / 'iter_1.pth').is_file() and 'selected timestep' in printed
