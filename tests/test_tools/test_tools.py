"""The tools as users start them: one process, two, killed and resumed, and the toolboxes' own tools on our configs.

Runs that need a process of their own are jobs. They start with the module, two at a time, while the first tests run here; a
job returns what its tests look at.
"""
import importlib.util
import json
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import runs
import torch
from PIL import Image

from mmaselect.openmm.safe_load import load
from mmaselect.selection import SelectionResult

TOOLS = runs.ROOT / 'tools'
TRAIN, TEST, SELECT = TOOLS / 'train.py', TOOLS / 'test.py', TOOLS / 'select_timestep.py'
SEG, CLS = 'aselect_fashion_scenes', 'aselect_fashion_mnist'
JOBS = {}


def job(function):
    """Makes a fixture of ``function(data, folder)``, which starts other processes."""
    JOBS[function.__name__] = function

    @pytest.fixture(scope='module', name=function.__name__)
    def outcome(jobs):
        return jobs[function.__name__].result()
    return outcome


@pytest.fixture(scope='module', autouse=True)
def jobs(request, data, tmp_path_factory):
    """Name -> future, of the jobs that this session's tests ask for."""
    wanted = [name for name in JOBS if any(name in item.fixturenames for item in request.session.items)]
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(JOBS[name], data, tmp_path_factory.mktemp(name)) for name in wanted}


def words(name, data, **changes):
    return runs.words({**runs.options(name, data), **{key.replace('__', '.'): value for key, value in changes.items()}})


def chosen_in(path):
    """The timestep that a checkpoint carries."""
    return int(load(path)['state_dict']['backbone.timestep'])


def last_number(output, metric):
    return float(re.findall(rf'{metric}:? +([\d.]+)', output)[-1])


# One process


@pytest.fixture(scope='module')
def classification(data, tmp_path_factory):
    """A trained classifier's work dir, and what training printed."""
    folder = tmp_path_factory.mktemp('classification')
    return folder, runs.run_here(TRAIN, runs.CONFIGS[CLS], '--work-dir', folder, *words(CLS, data))


def test_classification(classification, data, tmp_path):
    folder, trained = classification
    assert 'selected timestep' in trained and re.search(r'last evaluation: .*accuracy/top1 \d+\.\d\d', trained)
    tested = runs.run_here(TEST, runs.CONFIGS[CLS], folder / 'epoch_1.pth', '--work-dir', tmp_path, '--out-item', 'metrics',
                           '--out', tmp_path / 'metrics.json', *words(CLS, data))
    accuracy = last_number(tested, 'accuracy/top1')
    assert accuracy == last_number(trained, 'accuracy/top1:')
    assert json.loads((tmp_path / 'metrics.json').read_text())['accuracy/top1'] == pytest.approx(accuracy, abs=0.01)
    assert 'selected timestep' not in tested


def test_classification_with_test_time_augmentation(classification, data, tmp_path, evaluated):
    tested = runs.run_here(TEST, runs.CONFIGS[CLS], classification[0] / 'epoch_1.pth', '--tta', '--work-dir', tmp_path,
                           *words(CLS, data))
    assert last_number(tested, 'accuracy/top1') == pytest.approx(evaluated.metric(), abs=0.006)
    assert len(evaluated) > 1 and 'selected timestep' not in tested


@job
def segmentation(data, folder):
    return folder, runs.run(sys.executable, TRAIN, runs.CONFIGS[SEG], '--work-dir', folder, *words(SEG, data))


def test_training_prints_what_a_reader_wants_to_know(segmentation):
    folder, trained = segmentation
    check_the_console_is_short(trained, folder)
    result = SelectionResult.load(folder / 'timestep_selection.json')
    closing = trained[trained.rindex('done'):]
    assert f'chosen timestep: {result.timestep}' in closing
    assert re.search(r'last evaluation: .*mIoU \d+\.\d\d', closing)
    pictures = re.search(r'pictures: (.*)', closing)[1]
    assert len(list(runs.Path(pictures).glob('*.png'))) >= 2  # the curve of the selection, and predictions
    assert chosen_in(folder / 'iter_2.pth') == result.timestep
    assert trained.count('selected timestep') == 1 and 'timestep sweep' in trained


def check_the_console_is_short(printed, work_dir):
    """The pages before the first line that tells something are in the log file alone."""
    logged = next(work_dir.glob('*/*.log')).read_text()
    for page in ('System environment:', 'Config:', 'Hooks will be executed'):
        assert page in logged and page not in printed
    assert 'Could not import OneDL' not in printed
    assert len(printed[:printed.index('selected timestep')].splitlines()) < 40


def test_testing_gives_the_same_and_sweeps_no_more(segmentation, data, tmp_path):
    folder, trained = segmentation
    tested = runs.run_here(TEST, runs.CONFIGS[SEG], folder / 'iter_2.pth', '--work-dir', tmp_path, '--out', tmp_path / 'masks',
                           '--show-dir', tmp_path / 'shown', *words(SEG, data))
    assert last_number(tested, 'mIoU') == last_number(trained, 'mIoU:') and 'selected timestep' not in tested
    masks = sorted((tmp_path / 'masks').glob('*.png'))
    assert [mask.name for mask in masks] == sorted(p.name for p in (data / 'fashion_scenes' / 'img_dir' / 'val').iterdir())
    assert np.asarray(Image.open(masks[0])).shape == (32, 32)
    assert list((tmp_path / 'shown').rglob('*.png'))


def test_segmentation_with_test_time_augmentation(segmentation, data, tmp_path, evaluated):
    tested = runs.run_here(TEST, runs.CONFIGS[SEG], segmentation[0] / 'iter_2.pth', '--tta', '--work-dir', tmp_path,
                           *words(SEG, data))
    assert last_number(tested, 'mIoU') == pytest.approx(evaluated.metric(), abs=0.006)
    assert len(evaluated) == runs.VAL and 'selected timestep' not in tested


@job
def mmsegs_own(data, folder):
    name = 'aselect_ade20k'
    output = runs.run(sys.executable, tool_of('mmseg', 'train.py'), runs.CONFIGS[name], '--work-dir', folder,
                      *words(name, data, train_cfg__max_iters=1))
    return folder / 'iter_1.pth', output


@job
def mmpretrains_own(data, folder):
    output = runs.run(sys.executable, tool_of('mmpretrain', 'train.py'), runs.CONFIGS[CLS], '--work-dir', folder,
                      *words(CLS, data, train_dataloader__batch_size=8))
    return folder / 'epoch_1.pth', output


def tool_of(toolbox, name):
    return runs.Path(importlib.util.find_spec(toolbox).origin).parent / '.mim' / 'tools' / name


@pytest.mark.slow
def test_mmsegs_own_tool_trains_our_config(mmsegs_own):
    check_own(*mmsegs_own)


@pytest.mark.slow
def test_mmpretrains_own_tool_trains_our_config(mmpretrains_own):
    check_own(*mmpretrains_own)


def check_own(checkpoint, output):
    assert f'selected timestep t={chosen_in(checkpoint)} ' in output
    assert (checkpoint.parent / 'timestep_selection.png').stat().st_size > 1000


# Selection alone


def test_selection_alone_makes_the_choice_of_training(segmentation, data, tmp_path):
    printed = runs.run_here(SELECT, runs.CONFIGS[SEG], '--work-dir', tmp_path, *words(SEG, data))
    result = SelectionResult.load(tmp_path / 'timestep_selection.json')
    assert result.candidates == SelectionResult.load(segmentation[0] / 'timestep_selection.json').candidates
    assert result.table() in printed
    assert (tmp_path / 'timestep_selection.png').is_file() and not list(tmp_path.glob('*.pth'))


def test_selection_looks_at_a_checkpoint(segmentation, data, tmp_path):
    """One with other weights of the DiT chooses by those, and anew although it carries a choice."""
    state = runs.runner(SEG, data, tmp_path, {'model.backbone.fold': False}).model.state_dict()
    for name, value in state.items():
        if 'proj.weight' in name:
            value.mul_(1.5)
    state['backbone.timestep'].fill_(40)
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    runs.run_here(SELECT, runs.CONFIGS[SEG], '--work-dir', tmp_path, '--checkpoint', tmp_path / 'other.pth', *words(SEG, data))
    own = SelectionResult.load(tmp_path / 'timestep_selection.json').candidates
    assert own != SelectionResult.load(segmentation[0] / 'timestep_selection.json').candidates


# Two processes


@job
def distributed(data, folder):
    """A fine-tuning by two ranks, and its continuation by other candidates, which a second sweep could not ignore."""
    config, outputs, logs = runs.spied(SEG, folder), [], []
    first = words(SEG, data, model__backbone__frozen=False)
    longer = words(SEG, data, model__backbone__frozen=False, train_cfg__max_iters=4, train_cfg__val_interval=4,
                   model__neck__selection__candidates=[7, 8])
    for name, options in (('first', first), ('second', ['--resume', *longer])):
        (folder / name).mkdir()
        outputs.append(runs.run('bash', TOOLS / 'dist_train.sh', config, 2, '--work-dir', folder / 'run', *options,
                                SPY_LOG=str(folder / name)))
        logs.append([(folder / name / f'rank{rank}.txt').read_text().split('\n')[:-1] for rank in (0, 1)])
    return SimpleNamespace(work_dir=folder / 'run', outputs=outputs, logs=logs)


@pytest.mark.slow
def test_two_ranks_share_the_sweep_and_agree(distributed):
    result = SelectionResult.load(distributed.work_dir / 'timestep_selection.json')
    # images x views x candidates, and as many for each of the two controls
    assert result.num_images == runs.TRAIN and result.forwards == runs.TRAIN * 2 * 3 * 3
    for events in distributed.logs[0]:
        first = next(k for k, event in enumerate(events) if event.startswith('forward'))
        assert events[0] == 'sweep' and events.count('sweep') == 1
        latents = sum(int(event.split()[1]) for event in events[1:first])
        assert latents == result.forwards / 2
        timesteps = Counter(event for event in events if event.startswith('forward'))
        assert timesteps == {f'forward {result.timestep}': 3}  # two iterations and a batch of validation
    assert re.search(r'last evaluation: .*mIoU', distributed.outputs[0])
    assert distributed.outputs[0].count('selected timestep') == 1  # one rank reports


@pytest.mark.slow
def test_two_ranks_train_what_was_folded_at_the_choice(distributed):
    states = [load(distributed.work_dir / f'iter_{k}.pth')['state_dict'] for k in (3, 4)]  # of which two are kept
    family = [key for key in states[0] if key.startswith('backbone.extractor.family.')]
    assert states[0].keys() == states[1].keys() and not any('transformer_blocks' in key for key in family)
    assert not any(torch.equal(states[0][key], states[1][key]) for key in family)


@pytest.mark.slow
def test_two_ranks_resume_without_a_second_sweep(distributed):
    result = SelectionResult.load(distributed.work_dir / 'timestep_selection.json')
    assert [c.timestep for c in result.candidates] == [40, 150, 600]  # still the first run's
    for events in distributed.logs[1]:
        assert 'sweep' not in events
        assert {event for event in events if event.startswith('forward')} == {f'forward {result.timestep}'}
    assert chosen_in(distributed.work_dir / 'iter_4.pth') == result.timestep
    assert 'resuming from' in distributed.outputs[1] and 'iter_2.pth' in distributed.outputs[1]
    assert 'Iter(train) [4/4]' in distributed.outputs[1] and 'Iter(train) [2/4]' not in distributed.outputs[1]


# Killed


def killed(where, data, folder):
    """What a run printed and left behind that is killed there."""
    config = runs.spied(SEG, folder)
    died = runs.run(sys.executable, TRAIN, config, '--work-dir', folder / 'run', *killed_words(data), code=-9,
                    SPY_LOG=str(folder), SPY_KILL=where)
    left = {path.name: path.stat().st_size for path in (folder / 'run').iterdir()}
    return SimpleNamespace(work_dir=folder / 'run', died=died, left=left)


def killed_words(data, **changes):
    settings = dict(train_cfg__max_iters=4, train_cfg__val_interval=4, default_hooks__checkpoint__interval=2,
                    model__neck__selection__forward_batch=12)
    return words(SEG, data, **{**settings, **changes})


def resume(work_dir, data):
    """Goes on with a run until it is complete; a sweep would now have other candidates. What it printed."""
    printed = runs.run_here(TRAIN, runs.CONFIGS[SEG], '--work-dir', work_dir, '--resume',
                            *killed_words(data, model__neck__selection__candidates=[7, 8]))
    assert 'Iter(train) [4/4]' in printed and 'last evaluation' in printed
    assert chosen_in(work_dir / 'iter_4.pth') == SelectionResult.load(work_dir / 'timestep_selection.json').timestep
    return printed


@job
def killed_in_the_sweep(data, folder):
    return killed('sweep', data, folder)


@job
def killed_in_training(data, folder):
    return killed('train', data, folder)


@job
def killed_while_saving(data, folder):
    return killed('save', data, folder)


@pytest.mark.slow
def test_killed_in_the_sweep(killed_in_the_sweep, data):
    run = killed_in_the_sweep
    assert 'selected timestep' not in run.died
    assert not [name for name in run.left if name.endswith(('.pth', '.json', '.png'))]
    printed = resume(run.work_dir, data)
    assert 'no whole checkpoint' in printed and printed.count('selected timestep') == 1
    assert chosen_in(run.work_dir / 'iter_4.pth') in (7, 8)


@pytest.mark.slow
def test_killed_in_training(killed_in_training, data, tmp_path):
    run = killed_in_training
    assert 'iter_2.pth' in run.left and 'iter_4.pth' not in run.left and 'Iter(train) [2/4]' in run.died
    shutil.copytree(run.work_dir, tmp_path, dirs_exist_ok=True)  # others look at it too
    check_goes_on_from_the_second_iteration(resume(tmp_path, data), tmp_path)


@pytest.mark.slow
def test_killed_while_saving(killed_while_saving, data):
    run = killed_while_saving
    assert 0 < run.left['iter_4.pth'] < 0.7 * run.left['iter_2.pth']
    printed = resume(run.work_dir, data)
    assert re.search(r'skipped a checkpoint: .*iter_4\.pth is cut off', printed)
    check_goes_on_from_the_second_iteration(printed, run.work_dir)


@pytest.mark.slow
def test_a_checkpoint_that_was_cut_after_it_was_named_is_passed_over(killed_in_training, data, tmp_path):
    """As by a full disk or a crash of the machine: last_checkpoint points to it."""
    for name in ('iter_2.pth', 'timestep_selection.json'):
        shutil.copy(killed_in_training.work_dir / name, tmp_path)
    (tmp_path / 'iter_4.pth').write_bytes((tmp_path / 'iter_2.pth').read_bytes()[:-2000])
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    printed = resume(tmp_path, data)
    assert re.search(r'skipped a checkpoint: .*iter_4\.pth', printed)
    check_goes_on_from_the_second_iteration(printed, tmp_path)


def check_goes_on_from_the_second_iteration(printed, work_dir):
    assert 'Iter(train) [3/4]' in printed and 'Iter(train) [2/4]' not in printed
    assert 'selected timestep' not in printed
    result = SelectionResult.load(work_dir / 'timestep_selection.json')
    assert chosen_in(work_dir / 'iter_4.pth') == chosen_in(work_dir / 'iter_2.pth') == result.timestep


# Refused


@pytest.mark.slow
@pytest.mark.parametrize('tool', [TRAIN, TEST, SELECT], ids=lambda path: path.stem)
def test_a_work_dir_that_cannot_be_written_is_refused(tool, killed_in_training, data, tmp_path, capsys):
    (tmp_path / 'file').write_text('mine')
    checkpoint = [killed_in_training.work_dir / 'iter_2.pth'] if tool is TEST else []
    with pytest.raises(SystemExit) as stop:
        runs.run_here(tool, runs.CONFIGS[SEG], *checkpoint, '--work-dir', tmp_path / 'file' / 'run', *words(SEG, data))
    assert stop.value.code == 2
    assert re.search(r'the work dir .*file/run cannot be written \(.*\): choose another with --work-dir', capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ['file'] and (tmp_path / 'file').read_text() == 'mine'


def test_an_empty_validation_set_is_called_that(data, tmp_path):
    for kind in ('img_dir', 'ann_dir'):
        (tmp_path / 'nothing' / kind / 'val').mkdir(parents=True)
    with pytest.raises(ValueError, match='the validation set is empty: .*nothing has no images'):
        runs.run_here(TRAIN, runs.CONFIGS[SEG], '--work-dir', tmp_path / 'run', *words(SEG, data), '--cfg-options',
                      f'val_dataloader.dataset.data_root={tmp_path / "nothing"}')


@pytest.mark.parametrize('tool', [TRAIN, SELECT], ids=lambda path: path.stem)
def test_an_empty_training_set_is_refused(tool, data, tmp_path, capsys):
    for kind in ('img_dir', 'ann_dir'):
        (tmp_path / 'nothing' / kind / 'train').mkdir(parents=True)
    with pytest.raises((SystemExit, ValueError)) as caught:
        runs.run_here(tool, runs.CONFIGS[SEG], '--work-dir', tmp_path / 'run', *words(SEG, data), '--cfg-options',
                      f'train_dataloader.dataset.data_root={tmp_path / "nothing"}')
    assert 'training set is empty' in str(caught.value) + capsys.readouterr().err
    assert not list((tmp_path / 'run').glob('timestep_selection*'))
