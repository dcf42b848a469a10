"""python -m mmaselect, on this machine and on made-up ones."""
import json
import re
import runpy
import sys
from importlib import metadata

import pytest
import torch

from mmaselect import check_env, environment

GOOD = {
    'onedl': {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmsegmentation': '1.4.2', 'onedl-mmpretrain': '1.3.6',
              'torch': '2.14.1', 'numpy': '2.4.0', 'diffusers': '0.42.1', 'huggingface-hub': '1.2.0', 'opencv-python': '5.0.0.93',
              'ftfy': '6', 'regex': '2024'},
    'stock': {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmsegmentation': '1.2.2', 'mmpretrain': '1.2.0', 'torch': '2.1.2+cpu',
              'numpy': '1.26.4', 'diffusers': '0.35.2', 'huggingface-hub': '0.36.0', 'opencv-python': '4.11.0.86', 'ftfy': '6',
              'regex': '2024'},
}


def clashes(packages, python='3.11.7', ops='compiled'):
    return list(environment.clashes(packages, python=python, ops=ops))


@pytest.mark.parametrize('stack', GOOD)
def test_stacks_that_work_are_not_complained_of(stack):
    assert clashes(GOOD[stack], ops='compiled' if stack == 'stock' else 'not compiled') == []


@pytest.mark.parametrize('stack, changes, options, what, remedy', [
    ('onedl', GOOD['stock'], {}, 'both OpenMMLab stacks', 'pip uninstall onedl-mmengine .* mmpretrain, then install one'),
    ('stock', dict(numpy='2.0.1'), {}, r'numpy 2\.0\.1', "pip install 'numpy<2'"),
    ('stock', {'opencv-python': '4.12.0.88'}, {}, 'opencv 4.12', "'opencv-python<4.12'"),
    ('stock', dict(torch='2.6.0'), {}, 'fails on resume and test', 'torch==2.1.2'),
    ('stock', {}, dict(python='3.12.1'), r'Python 3\.12\.1', 'Python 3.10 or 3.11'),
    ('stock', {}, dict(ops='not compiled'), 'not compiled; mmseg 1.2 does not import', 'make test-stock'),
    ('stock', dict(diffusers='0.42.1'), {}, r'diffusers 0\.42\.1 with torch 2\.1\.2\+cpu', r'diffusers==0\.35\.2'),
    ('stock', {'huggingface-hub': '1.0.0'}, {}, r'huggingface_hub 1\.0\.0 is too new', 'huggingface_hub<1'),
    ('onedl', dict(torch='2.5.1'), {}, 'diffusers 0.42.1 with torch 2.5.1', r'diffusers==0\.35\.2'),
    ('onedl', {'onedl-mmcv': None, 'ftfy': None}, {}, 'the onedl stack lacks onedl-mmcv, ftfy', r'mmaselect\[onedl\]'),
    ('stock', {'mmpretrain': None}, {}, 'the stock stack lacks mmpretrain', r'mmaselect\[openmmlab\]'),
    ('stock', dict.fromkeys(environment.STACKS['stock']), {}, 'no OpenMMLab stack', r'mmaselect\[onedl\]'),
])
def test_clashes_are_found(stack, changes, options, what, remedy):
    packages = {name: version for name, version in {**GOOD[stack], **changes}.items() if version}
    found = clashes(packages, **options)
    assert any(re.search(what, problem[0]) and re.search(remedy, problem[1]) for problem in found), found


def test_what_is_installed_is_read_from_the_distributions(tmp_path, monkeypatch, capsys):
    """A made-up site-packages, whose names are not spelled as pip spells them."""
    for folder, name, version in (('a', 'mmcv', '2.1.0'), ('a', 'onedl_MMCV', '2.3.6'), ('a', 'unrelated', '1'),
                                  ('b', 'mmcv', '1.0.0')):
        info = tmp_path / folder / f'{name}-{version}.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    monkeypatch.setattr(environment, 'broken_imports', lambda packages: [])
    monkeypatch.setattr(environment, 'compiled_ops', lambda: None)
    monkeypatch.setattr(environment, 'machine', lambda: {'sys.platform': 'made up'})
    monkeypatch.setattr(sys, 'path', [str(tmp_path / 'a'), str(tmp_path / 'b')])
    env = check_env()
    assert env['packages'] == {'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'} and env['stack'] == 'both'
    assert any('both OpenMMLab stacks' in problem['what'] for problem in env['problems'])
    printed = capsys.readouterr().out
    assert 'made up' in printed
    assert all(problem[key] in printed for problem in env['problems'] for key in ('what', 'remedy'))


def test_a_stack_that_does_not_import_is_a_problem(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    (what, _), = environment.broken_imports({'mmpretrain': '1.2.0', 'torch': '2.1.2'})
    assert 'mmpretrain does not import: ModuleNotFoundError' in what


def test_this_machine_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['mmaselect', '--json'])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module('mmaselect', run_name='__main__')
    printed = capsys.readouterr().out
    env = json.loads(printed[printed.index('{\n'):])
    onedl = any(found.metadata['Name'].lower() == 'onedl-mmcv' for found in metadata.distributions())
    assert env['stack'] == ('onedl' if onedl else 'stock') and env['problems'] == [] and ended.value.code == 0
    assert env['packages']['torch'] == metadata.version('torch') and env['devices'][0].startswith('CPU')
    assert env['machine']['PyTorch'] == torch.__version__ and env['machine']['sys.platform'] == sys.platform
    assert env['ops'] in (('compiled',) if env['stack'] == 'stock' else ('compiled', 'not compiled'))
