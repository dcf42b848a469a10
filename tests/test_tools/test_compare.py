"""tools/compare.py: on tiny configs of both toolboxes, and its bookkeeping on planted runs that take no time.

Its processes are replaced: by the same tools run here, which spares their imports, or by scripts that pretend to train.
"""
import fcntl
import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import by_hand
import pytest
import runs
import torch
from mmengine.config import Config
from PIL import Image

from mmaselect.selection import SelectionResult

TOOLS = runs.ROOT / 'tools'
SEG, CLS = 'aselect_fashion_scenes', 'aselect_fashion_mnist'

# In place of train.py, test.py and cost.py. What a config reaches is planted in its `results`, by the seed; None fails.
PRETENDED = {
    'train.py': """
import runpy, shutil, sys, time
words = sys.argv[1:]
config, folder = runpy.run_path(words[0]), words[words.index('--work-dir') + 1]
assert '--resume' in words
seed = next(word for word in words if word.startswith('randomness.seed='))[len('randomness.seed='):]
with open(f'{folder}/trained.txt', 'a') as file:
    file.write(seed + chr(10))
time.sleep(config['seconds'])
if config['results'][seed] is None:
    sys.exit('the loss was not finite')
shutil.copy(config['checkpoint'], f'{folder}/iter_2.pth')
""",
    'test.py': """
import json, os, runpy, sys
words = sys.argv[1:]
seed = next(word for word in words if word.startswith('randomness.seed='))[len('randomness.seed='):]
assert os.path.isfile(words[1])
folder = words[words.index('--work-dir') + 1] + '/20250101_000000'
os.makedirs(folder)
with open(f'{folder}/20250101_000000.json', 'w') as file:
    json.dump(dict(mIoU=runpy.run_path(words[0])['results'][seed], aAcc=1.0), file)
""",
    'analysis_tools/cost.py': """
import json, sys
with open(sys.argv[sys.argv.index('--out') + 1], 'w') as file:
    json.dump(dict(parameters=2_000_000, trained=500_000, flops=3_000_000_000, milliseconds=12.0, timestep=None), file)
"""}


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module('compare')
    monkeypatch.setattr(module, 'PAUSE', 0.02)
    return module


def run_compare(compare, monkeypatch, *arguments, code=0):
    """Runs the tool here; it must end with ``code``."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, arguments)])
    try:
        compare.main()
        ended = 0
    except SystemExit as stop:
        ended = stop.code
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert ended == code


# The real tools


@pytest.fixture(scope='module')
def configs(data, tmp_path_factory):
    """Two tiny configs of each toolbox; one of the classifiers has another learning rate and no DiT."""
    folder = tmp_path_factory.mktemp('configs')
    resnet = 'baselines/resnet18_fashion_mnist.py'
    files = {'seg': (f'dit_{SEG}.py', SEG, {}), 'seg_fixed': (f'dit_{SEG}.py', SEG, {'model.backbone.timestep': 150}),
             'cls': (f'dit_{CLS}.py', CLS, {}), 'cls_resnet': (resnet, CLS, {'optim_wrapper.optimizer.lr': 0.5})}
    for name, (base, like, changes) in files.items():
        options = {key: value for key, value in runs.options(like, data).items() if name != 'cls_resnet' or 'model' not in key}
        cfg = Config.fromfile(runs.ROOT / 'configs' / base)
        cfg.merge_from_dict({**options, **changes})
        cfg.dump(folder / f'{name}.py')
    return [folder / f'{name}.py' for name in files]


def here(compare, calls):
    """In place of compare.call: the tools in this process."""
    def call(tool, arguments, log, tick):
        calls.append((tool, log.parent.parent.name))
        with open(log, 'a') as file:
            tick(90.0)
            try:
                file.write(runs.run_here(TOOLS / tool, *arguments))
            except SystemExit as stop:
                raise compare.RunError(f'{tool} ended with code {stop.code}') from None
        return 800.0
    return call


def test_both_toolboxes_from_training_to_the_table(compare, configs, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(compare, 'call', here(compare, calls))
    out = tmp_path / 'results' / 'table.json'
    # The timestep 5000 does not exist, so that training fails.
    broken = tmp_path / 'broken.py'
    broken.write_text(f"_base_ = '{configs[1]}'\nmodel = dict(backbone=dict(timestep=5000))\n")
    arguments = [*configs, broken, '--seeds', 0, '--work-dir', tmp_path / 'work', '--out', out]
    monkeypatch.setattr(runs, 'run_here', failing_on_value_error(runs.run_here))
    run_compare(compare, monkeypatch, *arguments, code=1)
    printed = capsys.readouterr()

    assert 'cls_resnet differs from cls in optim_wrapper.optimizer.lr (0.5, not 0.005)' in printed.err
    assert f'failed: broken, seed 0: train.py ended with code 1; see {tmp_path}/work/broken/seed_0/run.log' in printed.err
    found = json.loads(out.read_text())
    assert len(found['warnings']) == len(found['failures']) == 1
    rows = {row['config']: row for row in found['rows']}
    assert list(rows) == ['seg', 'seg_fixed', 'cls', 'cls_resnet', 'broken']
    assert [row['data'] for row in rows.values()] == ['fashion_scenes', 'fashion_scenes', 'fashion_mnist', 'fashion_mnist',
                                                      'fashion_scenes']
    for name, metric in (('seg', 'mIoU'), ('seg_fixed', 'mIoU'), ('cls', 'accuracy/top1'), ('cls_resnet', 'accuracy/top1')):
        row, folder = rows[name], tmp_path / 'work' / name / 'seed_0'
        printed_last = float(re.findall(rf'{metric}: +([0-9.]+)', (folder / 'run.log').read_text())[-1])
        assert row['metric'] == metric and row['values'] == [row['mean']] == [pytest.approx(printed_last, abs=0.01)]
        assert row['std'] is None
        assert row['minutes'] == 1.5 and row['milliseconds'] > 0
        assert row['megabytes'] == 800 or torch.cuda.is_available() and row['megabytes'] > 0  # the GPU's, which MMEngine logs
        assert 0 < row['trained'] <= row['parameters'] and row['flops'] > 0
    assert rows['cls_resnet']['trained'] == rows['cls_resnet']['parameters'] > rows['cls']['trained']
    assert [rows[name]['timesteps'] for name in ('seg_fixed', 'cls_resnet')] == [[[150]], [None]]
    result = SelectionResult.load(tmp_path / 'work' / 'seg' / 'seed_0' / 'timestep_selection.json')
    assert len(result.candidates) == 3 and rows['seg']['timesteps'] == [[by_hand.choice(result)]]
    assert rows['broken']['values'] == [] and rows['broken']['mean'] is None

    table = out.with_suffix('.md').read_text()
    assert table in printed.out and '| broken ' in table and 'not measured' in table
    assert all(side > 200 for side in Image.open(out.with_suffix('.png')).size)
    done = list(calls)
    run_compare(compare, monkeypatch, *arguments, code=1)  # again: only what failed
    assert calls[len(done):] == [('train.py', 'broken')]


def failing_on_value_error(run_here):
    """A tool that raises ends with code 1, as in a process of its own."""
    def run(*words):
        try:
            return run_here(*words)
        except ValueError:
            raise SystemExit(1) from None
    return run


# Pretended runs


@pytest.fixture
def pretend(compare, tmp_path, monkeypatch):
    """Tools that pretend, and a function that writes a config whose results are planted."""
    for name, text in PRETENDED.items():
        (tmp_path / 'tools' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'tools' / name).write_text(text)
    monkeypatch.setattr(compare, 'TOOLS', tmp_path / 'tools')
    torch.save(dict(meta={}, state_dict={}, message_hub={}), tmp_path / 'iter_2.pth')
    monkeypatch.setenv('PYTHONPATH', str(runs.ROOT))

    def config(name, results, seconds=0.0, lr=1e-3, folder='data/scenes'):
        path = tmp_path / f'{name}.py'
        path.write_text(
            f"default_scope = 'mmseg'\nresults = {({str(seed): value for seed, value in results.items()})!r}\n"
            f"seconds, checkpoint = {seconds}, '{tmp_path / 'iter_2.pth'}'\n"
            "model = dict(backbone=dict(type='A'), decode_head=dict(type='B', in_channels=3))\n"
            f"optim_wrapper = dict(optimizer=dict(type='AdamW', lr={lr}))\n"
            f"test_dataloader = dict(dataset=dict(type='BaseSegDataset', data_root='{folder}'))\n")
        return path
    return SimpleNamespace(config=config, folder=tmp_path, work=tmp_path / 'work')


def trained(pretend, name, seed):
    """How often a pretended run was trained."""
    path = pretend.work / name / f'seed_{seed}' / 'trained.txt'
    return len(path.read_text().split()) if path.exists() else 0


def test_mean_and_deviation_by_hand(compare, pretend, monkeypatch, capsys):
    good = pretend.config('good', {0: 20.0, 1: 23.0, 2: 26.0})
    other = pretend.config('other', {0: 10.0, 1: 10.5, 2: None})
    run_compare(compare, monkeypatch, good, other, '--work-dir', pretend.work, code=1)
    rows = json.loads((pretend.work / 'compare.json').read_text())['rows']
    assert [row['values'] for row in rows] == [[20.0, 23.0, 26.0], [10.0, 10.5]]
    # by hand: deviations -3, 0, 3, so (9 + 9) / 2 = 9; and -0.25, 0.25, so 2 / 16 / 1 = 1 / 8
    assert [row['mean'] for row in rows] == [23.0, 10.25]
    assert [row['std'] for row in rows] == pytest.approx([3.0, 0.125**0.5])
    assert [row['seeds'] for row in rows] == [[0, 1, 2], [0, 1]]
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('| good'))
    expected = ['good', 'scenes', 'mIoU', '23.00 ± 3.00', '0 1 2', '2.00', '0.50', '3.000', '12.0']
    assert [cell.strip() for cell in first.split('|')[1:10]] == expected


def test_a_failed_run_is_named_and_tried_again(compare, pretend, monkeypatch, capsys):
    bad, good = pretend.config('bad', {0: None}), pretend.config('good', {0: 20.0})
    arguments = [bad, good, '--seeds', 0, '--work-dir', pretend.work]
    run_compare(compare, monkeypatch, *arguments, code=1)
    assert f'failed: bad, seed 0: train.py ended with code 1; see {pretend.work}/bad/seed_0/run.log' in capsys.readouterr().err
    assert 'the loss was not finite' in (pretend.work / 'bad' / 'seed_0' / 'run.log').read_text()
    run_compare(compare, monkeypatch, *arguments, code=1)
    assert (trained(pretend, 'bad', 0), trained(pretend, 'good', 0)) == (2, 1)


@pytest.mark.parametrize('stage', ['test.py', 'analysis_tools/cost.py'])
def test_killed_after_training(compare, pretend, monkeypatch, stage):
    """What was trained is not trained again, and its seconds are kept."""
    config = pretend.config('good', {0: 20.0}, seconds=0.2)
    arguments = [config, '--seeds', 0, '--work-dir', pretend.work]
    real = compare.call

    def call(tool, *rest):
        if tool == stage:
            raise KeyboardInterrupt
        return real(tool, *rest)
    monkeypatch.setattr(compare, 'call', call)
    run_compare(compare, monkeypatch, *arguments, code=130)
    monkeypatch.setattr(compare, 'call', real)
    run_compare(compare, monkeypatch, *arguments)
    assert trained(pretend, 'good', 0) == 1
    row, = json.loads((pretend.work / 'compare.json').read_text())['rows']
    assert row['values'] == [20.0] and row['minutes'] >= 0.2 / 60


@pytest.mark.slow
def test_terminated_while_training(pretend, tmp_path):
    """The tool as users start it: its process ends the one that trains, and the next call resumes and adds up the time."""
    for name in ('compare.py', 'compare_table.py'):
        shutil.copy(TOOLS / name, tmp_path / 'tools')
    config = pretend.config('slow', {0: 20.0}, seconds=3600)
    command = [sys.executable, tmp_path / 'tools' / 'compare.py', config, '--seeds', '0', '--work-dir', pretend.work]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    record = pretend.work / 'slow' / 'seed_0' / 'run.json'
    while not trained(pretend, 'slow', 0) or not json.loads(record.read_text()).get('seconds'):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == 130 and 'the same command goes on from here' in process.stderr.read()
    with open(record.with_name('run.log')) as log:  # nobody holds it: the process that trained is gone
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert json.loads(record.read_text())['seconds'] > 0 and 'checkpoint' not in json.loads(record.read_text())


def test_seconds_of_attempts_add_up(compare, pretend, monkeypatch):
    config = pretend.config('good', {0: 20.0})
    run, = plan(compare, config, pretend)
    run.folder.mkdir(parents=True)
    run.note(seconds=600.0)  # of an attempt that was interrupted
    run_compare(compare, monkeypatch, config, '--seeds', 0, '--work-dir', pretend.work)
    row, = json.loads((pretend.work / 'compare.json').read_text())['rows']
    assert 10 < row['minutes'] < 11


def plan(compare, config, pretend):
    return compare.plan(SimpleNamespace(configs=[config], seeds=[0], cfg_options=[], work_dir=pretend.work))[0]


def test_a_run_that_another_process_works_on_is_left_alone(compare, pretend, monkeypatch, capsys):
    config = pretend.config('good', {0: 20.0})
    log = pretend.work / 'good' / 'seed_0' / 'run.log'
    log.parent.mkdir(parents=True)
    with open(log, 'a') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run_compare(compare, monkeypatch, config, '--seeds', 0, '--work-dir', pretend.work, code=1)
    assert 'another process is at work on this run' in capsys.readouterr().err and trained(pretend, 'good', 0) == 0


def test_other_settings_are_not_taken_for_the_same_run(compare, pretend, monkeypatch, capsys):
    config = pretend.config('good', {0: 20.0})
    arguments = [config, '--seeds', 0, '--work-dir', pretend.work]
    run_compare(compare, monkeypatch, *arguments)
    run_compare(compare, monkeypatch, *arguments, '--cfg-options', 'optim_wrapper.optimizer.lr=1', code=2)
    assert 'good/seed_0 holds a run of good with other settings' in capsys.readouterr().err


def test_schedules_and_data_that_differ_are_named(compare, pretend, monkeypatch, capsys):
    configs = [pretend.config('a', {0: 1.0}), pretend.config('b', {0: 2.0}, lr=0.1),
               pretend.config('elsewhere', {0: 3.0}, lr=0.2, folder='data/others')]
    run_compare(compare, monkeypatch, *configs, '--seeds', 0, '--work-dir', pretend.work)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith('warning')]
    assert warnings == ['warning: b differs from a in optim_wrapper.optimizer.lr (0.1, not 0.001)']
    assert 'b differs from a in' in (pretend.work / 'compare.md').read_text()


@pytest.mark.parametrize('change, named', [
    (dict(train_dataloader=dict(batch_size=8)), ['train_dataloader.batch_size']),
    (dict(train_dataloader=dict(num_workers=8)), []),
    (dict(param_scheduler=[dict(type='PolyLR', power=1.0)]), ['param_scheduler.0.power']),
    (dict(model=dict(decode_head=dict(in_channels=[7], channels=2))), ['model.decode_head.channels']),
    (dict(model=dict(auxiliary_head=dict(_delete_=True, type='FCNHead'))), ['model.auxiliary_head.type']),
    (dict(model=dict(backbone=dict(type='Other'))), []),
])
def test_differences(compare, change, named):
    base = dict(
        train_dataloader=dict(batch_size=4, num_workers=2), param_scheduler=[dict(type='PolyLR', power=0.9)],
        model=dict(backbone=dict(type='One'), decode_head=dict(in_channels=[3, 4], channels=1), auxiliary_head=None))
    one, other = Config(base), Config(base)
    other.merge_from_dict(change)
    assert [path for path, *_ in compare.differences(one, other)] == named


def test_a_step_more_in_a_pipeline_is_named_alone(compare):
    steps = [dict(type='Load'), dict(type='Flip', prob=0.5), dict(type='Flip', prob=0.2), dict(type='Pack')]
    one, other = (Config(dict(train_dataloader=dict(dataset=dict(pipeline=own)))) for own in (
        steps, [*steps[:1], dict(type='Resize', scale=48), *steps[1:2], dict(steps[2], prob=0.3), *steps[3:]]))
    path = 'train_dataloader.dataset.pipeline'
    assert sorted(compare.differences(one, other)) == [
        (path, 'Load, Flip, Flip, Pack', 'Load, Resize, Flip, Flip, Pack'), (f'{path}.Flip.1.prob', 0.2, 0.3),
        (f'{path}.Resize.scale', None, 48)]


def test_what_cannot_be_compared_is_refused(compare, pretend, monkeypatch, capsys):
    config = pretend.config('good', {0: 20.0})
    for arguments, message in [
            ([config, config], 'two configs are called good'),
            ([runs.ROOT / 'configs' / 'baselines' / 'mae_vit_fashion_pretrain.py'], 'has no test_dataloader'),
            ([pretend.folder / 'none.py'], 'none.py'),
            ([config, '--seeds', 0, '--metrics', 'mFscore'], 'good was tested by mIoU, aAcc: choose one of them with --metrics')]:
        run_compare(compare, monkeypatch, *arguments, '--work-dir', pretend.work, code=2)
        assert message in capsys.readouterr().err
    assert trained(pretend, 'good', 0) == 1


def test_progress(compare, tmp_path):
    log = tmp_path / 'run.log'
    log.write_text('x' * 9000 + '\nmmengine - INFO - Epoch(train)  [2][ 50/400]  lr: 1e-3  eta: 0:01:02  time: 0.1\n')
    assert compare.progress(log) == 'Epoch(train)  [2][ 50/400] eta: 0:01:02'
    log.write_text('nothing yet\n')
    assert compare.progress(log) == ''


def test_seeds_reach_the_neck_wherever_it_is(compare):
    cfg = Config(dict(model=dict(neck=[dict(type='A'), dict(type='mmaselect.AutoTimestepNeck')])))
    assert compare.seeded(cfg, 3) == ['randomness.seed=3', 'model.neck.1.selection.seed=3']


# Swapped twins


def test_swap_compares_a_stock_config_with_its_twin(compare, tmp_path, monkeypatch):
    stock = 'mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    ours = str(runs.CONFIGS['aselect_fashion_scenes'])
    found = compare.with_twins([stock, ours], str(runs.ROOT / 'configs' / 'fashion_dit'), tmp_path)
    assert [path.rpartition('/')[2] for path in found] == [
        'deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024_dit.py',
        'dit_aselect_fashion_scenes.py']  # ours has a DiT already
    cfgs = [Config.fromfile(path) for path in found[:2]]
    assert cfgs[1].model.backbone.type == 'mmaselect.DiTBackbone'
    assert compare.differences(*cfgs) == []  # the same data, schedule and head
    out, _ = compare.plan(SimpleNamespace(configs=found[:2], cfg_options=[], seeds=[0, 1], work_dir=tmp_path / 'runs'))
    assert [(run.name.endswith('_dit'), run.seed) for run in out] == [(False, 0), (True, 0), (False, 1), (True, 1)]


def test_swap_refuses_before_any_run(compare, tmp_path, monkeypatch, capsys):
    pid = 'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'
    run_compare(compare, monkeypatch, pid, '--swap', runs.ROOT / 'configs' / 'fashion_dit', '--work-dir', tmp_path, code=2)
    assert 'decode_head PIDHead reads the three branches of PIDNet' in capsys.readouterr().err
