"""tools/swap_backbone.py, and the docs' page on a user's own config, whose commands are run from start to end on tiny data."""
import re
import shlex
import sys

import numpy as np
import pytest
import runs
from layouts import mask, picture, save
from mmengine.config import Config

from mmaselect.openmm.swap import inherit

TOOL = runs.ROOT / 'tools' / 'swap_backbone.py'
PSP = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
DIT = runs.ROOT / 'configs' / 'fashion_dit'


@pytest.fixture(autouse=True)
def tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))


def test_prints_a_diff_and_a_table_and_writes_a_config(tmp_path, capsys):
    out = tmp_path / 'psp.py'
    options = ['--pretrained', DIT, '--taps', '2.hidden', '5.query', '--neck', 'norm=channel', 'selection.num_images=64']
    printed = runs.run_here(TOOL, PSP, *options, '--out', out)
    assert re.search(r"^-.*type='ResNetV1c'", printed, re.MULTILINE)
    assert re.search(r"^\+.*type='mmaselect.DiTBackbone'", printed, re.MULTILINE)
    assert re.search(r'decode_head PSPHead +<- +128 channels, 8 pixels per cell +<- +5\.query', printed)
    assert 'pixels meet a DiT that was trained at 64x64' in capsys.readouterr().err
    cfg = Config.fromfile(out)
    assert cfg.model.backbone.taps == [(2, 'hidden'), (5, 'query')] and cfg.model.neck.norm == 'channel'
    assert cfg.model.neck.selection == dict(num_images=64)
    assert cfg.train_dataloader == Config.fromfile(inherit.find(PSP)).train_dataloader


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        runs.run_here(TOOL, *arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_bad_input(tmp_path, capsys):
    out = tmp_path / 'mine.py'
    out.write_text('precious = 1\n')
    assert f'--out {out} exists already' in refused(capsys, PSP, '--pretrained', DIT, '--out', out)
    assert out.read_text() == 'precious = 1\n'
    assert 'did you mean' in refused(capsys, 'mmseg::pspnet/pspnet_r18.py', '--pretrained', DIT)
    assert 'reads the three branches' in refused(
        capsys, 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', '--pretrained', DIT)
    assert "neither a folder nor a model" in refused(capsys, PSP, '--pretrained', tmp_path / 'no_dit')
    assert 'no_such_option' in refused(capsys, PSP, '--pretrained', DIT, '--neck', 'no_such_option=1')
    assert 'BLOCK.NAME' in refused(capsys, PSP, '--pretrained', DIT, '--taps', 'deepest')
    other = tmp_path / 'detector.py'
    other.write_text("default_scope = 'mmdet'\nmodel = dict(type='FasterRCNN', backbone=dict(type='ResNet'))\n")
    assert 'the model is a FasterRCNN' in refused(capsys, other, '--pretrained', DIT)


# The docs' page

PAGE = runs.ROOT / 'docs' / 'your_config.md'
SHORT = ['--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'model.neck.selection.candidates=[40,150]',
         'model.neck.selection.num_images=4', *(f'{part}_dataloader.num_workers=0' for part in ('train', 'val', 'test'))]


def blocks(language):
    return re.findall(rf'^```{language}\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)


def commands():
    """(tool, words) of the page's commands, with the tiny DiT in place of the hub's and a short schedule."""
    for line in re.findall(r'^    python (tools/.*)$', PAGE.read_text(), re.MULTILINE):
        words = shlex.split(line.replace('facebook/DiT-XL-2-512', str(DIT)).replace('iter_20000', 'iter_2'))
        yield words[0], words[1:]


def test_the_page_runs_from_two_folders_to_a_picture(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split, names in (('train', 'abcdef'), ('val', 'ab')):
        for name in names:
            save(tmp_path / 'data' / 'mine' / 'images' / split / f'{name}.jpg', picture(rng, 48, 64))
            save(tmp_path / 'data' / 'mine' / 'masks' / split / f'{name}.png', mask(rng, 48, 64, [0, 1]))
    monkeypatch.chdir(tmp_path)
    config, in_python, inference = blocks('python')
    (tmp_path / 'my_config.py').write_text(config.replace('(512, 512)', '(32, 64)').replace('SyncBN', 'BN'))
    ran = []
    for tool, words in commands():
        if words[0].startswith('mmseg::') or tool == 'tools/compare.py':
            continue  # the first only prints; the second is tested in test_compare.py
        ran.append(tool)
        runs.run_here(runs.ROOT / tool, *words, *([] if tool == 'tools/swap_backbone.py' else SHORT))
    assert ran == [f'tools/{name}.py' for name in ('swap_backbone', 'select_timestep', 'train', 'test')]
    assert (tmp_path / 'work_dirs' / 'look' / 'timestep_selection.json').is_file()
    names = {}
    exec(in_python.replace('facebook/DiT-XL-2-512', str(DIT)), names)
    assert names['cfg'].model == Config.fromfile('my_dit.py').model
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', sys.modules.get('matplotlib.pyplot'))
    exec(inference.replace('iter_20000', 'iter_2'), names)
    assert names['result'].pred_sem_seg.data.shape == (1, 48, 64) and (tmp_path / 'a_segmented.png').is_file()
