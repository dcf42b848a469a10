"""The page of a run, made of files that are written here: none of it needs a training."""
import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from mmaselect import report
from mmaselect.report.charts import chart, data_uri
from mmaselect.selection import SelectionResult

CONFIG = '''\
model = dict(
    backbone=dict(frozen=True, pretrained='weights/<dit>', taps=[(2, 'hidden'), (-1, 'key')], type='mmaselect.DiTBackbone'),
    decode_head=dict(channels=64, type='SegformerHead'), type='EncoderDecoder')
optim_wrapper = dict(optimizer=dict(lr=0.002, type='AdamW'), type='OptimWrapper')
randomness = dict(seed=7)
train_cfg = dict(max_iters=40, type='IterBasedTrainLoop', val_interval=20)
train_dataloader = dict(batch_size=16, dataset=dict(data_root='data/scenes', type='BaseSegDataset'))
work_dir = __import__('os').system('touch executed')
'''
LOG = '''\
2026/11/23 10:00:00 - mmengine - INFO - 
------------------------------------------------------------
System environment:
    Python: 3.11.2 (main) [GCC 12.2.0]
    PyTorch: 2.9.0
Runtime environment:
    seed: 7
------------------------------------------------------------
2026/11/23 10:02:05 - mmengine - INFO - done
'''  # noqa: W291, as MMEngine writes it


def write_selection(folder, **changes):
    """What a sweep leaves: the best of four candidates is the second, and the last is pure noise."""
    rows = [(40, 0.14, 3.9, (0.30, 0.50)), (150, 0.46, 1.3, (0.50, 0.70)), (600, 0.99, -3.9, (0.05, 0.15)),
            (999, 1.0, None, (0.1, 0.3))]
    candidates = [dict(timestep=t, sigma=sigma, log_snr=snr, tap_scores=own, score=sum(own) / 2) for t, sigma, snr, own in rows]
    found = dict(timestep=150, tap=None, candidates=candidates, taps=[(2, 'hidden'), (3, 'key')],
                 score=dict(type='view_consistency'), num_images=48, seed=3, forwards=288, seconds=61.0, interval=(40, 150),
                 probability=0.8, controls={'noise': 600}, weights='cafe', versions=dict(mmaselect='0.1.0'))
    (folder / 'timestep_selection.json').write_text(json.dumps({**found, **changes}))


def entry(step, **values):
    return json.dumps(dict(values, step=step)) + '\n'


def training(*steps):
    return ''.join(entry(step, lr=0.002, loss=4 / step, iter=step, memory=100, **{'decode.acc_seg': step}) for step in steps)


def write_session(folder, scalars, log=LOG, pictures=()):
    (folder / 'vis_data' / 'vis_image').mkdir(parents=True)
    (folder / f'{folder.name}.log').write_text(log)
    (folder / 'vis_data' / 'scalars.json').write_text(scalars)
    for name in pictures:
        write_picture(folder / 'vis_data' / 'vis_image' / name)


def write_picture(path, height=20, width=30):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(path)


@pytest.fixture
def work_dir(tmp_path):
    """A finished run with everything."""
    folder = tmp_path / 'a <run>'
    scalars = (entry(40, **{'timestep_selection/view_consistency': 0.4}) + training(10, 20) + entry(20, mIoU=31.5, time=0.1)
               + training(30, 40) + entry(40, mIoU=28.25, time=0.1))
    write_session(folder / '20261123_100000', scalars,
                  pictures=['timestep_selection_0.png', 'val_7_9.png', 'val_7_40.png', 'val_8_20.png'])
    (folder / 'scenes.py').write_text(CONFIG)
    (folder / 'iter_40.pth').write_bytes(b'')
    (folder / 'last_checkpoint').write_text('/elsewhere/iter_40.pth')
    write_selection(folder)
    write_picture(folder / 'vis_features_0.png')
    return folder


def text(page):
    """What a reader sees, without tags."""
    return html.unescape(re.sub(r'\s+', ' ', re.sub(r'<(script|style).*?</\1>|<[^>]+>', ' ', page, flags=re.DOTALL)))


def test_reads_all_of_a_run(work_dir):
    run = report.read(work_dir)
    assert run.selection == SelectionResult.load(work_dir / 'timestep_selection.json')
    assert run.train['loss'] == [(10, 0.4), (20, 0.2), (30, 4 / 30), (40, 0.1)]
    assert run.val == {'mIoU': [(20, 31.5), (40, 28.25)]}
    assert (run.unit, run.done, run.total, run.seconds) == ('iteration', 40, 40, 125.0)
    assert run.environment == dict(Python='3.11.2 (main) [GCC 12.2.0]', PyTorch='2.9.0', seed='7')
    assert run.config['model']['backbone']['taps'] == [[2, 'hidden'], [-1, 'key']]
    assert [path.name for path in run.predictions + run.maps] == ['val_7_40.png', 'val_8_20.png', 'vis_features_0.png']
    assert run.checkpoint == work_dir / 'iter_40.pth' and not run.notes


def test_a_config_is_not_executed(work_dir, monkeypatch):
    monkeypatch.chdir(work_dir)
    assert 'system' in report.read(work_dir).config['work_dir']
    assert not (work_dir / 'executed').exists()


def test_the_page_says_what_the_run_did(work_dir):
    page = report.render(report.read(work_dir))
    seen = text(page)
    for words in ('a <run>', 't = 150', 'noise level σ 0.46', 'log-SNR 1.3', 'Trained for 40 iterations, 2 min 5 s',
                  'mIoU 28.25 31.5 20', 'weights/<dit>', '2.hidden, -1.key', 'AdamW, learning rate 0.002',
                  'noise chooses t = 600', 'tools/train.py', 'PyTorch 2.9.0', 'seed 7', 'seed of the sweep 3', '−∞'):
        assert words in seen, words
    assert page.count('src="data:image/svg+xml;base64,') == 5  # the choice, loss, accuracy, learning rate, evaluation
    assert page.count('src="data:image/png;base64,') == 3


def test_the_page_needs_no_other_file(work_dir):
    page = report.render(report.read(work_dir))
    assert 'http' not in page and not re.findall(r'(?:src|href|url)\s*[=(]\s*"?(?!data:)[^"\s>]+', page)


def test_a_resumed_run_is_one_curve(work_dir):
    """What the first session did after the checkpoint that was resumed does not count."""
    first = work_dir / '20261123_100000' / 'vis_data' / 'scalars.json'
    first.write_text(training(10, 20, 30))
    write_session(work_dir / '20261123_110000', training(25, 40), log=f'{LOG}resumed epoch: 0, iter: 20\n')
    run = report.read(work_dir)
    assert [step for step, _ in run.train['loss']] == [10, 20, 25, 40] and run.seconds == 250
    # One that began anew stands alone.
    write_session(work_dir / '20261123_120000', training(5))
    assert [step for step, _ in report.read(work_dir).train['loss']] == [5]


def test_an_interrupted_run(work_dir):
    """Cut off anywhere: what is there is shown, what is damaged is named."""
    shutil.rmtree(work_dir / '20261123_100000' / 'vis_data' / 'vis_image')
    (work_dir / '20261123_100000' / 'vis_data' / 'scalars.json').write_text(training(10) + '{"lr": 0.0')
    (work_dir / 'timestep_selection.json').write_text('{"timestep"')
    (work_dir / 'vis_features_0.png').write_bytes((work_dir / 'vis_features_0.png').read_bytes()[:100])
    (work_dir / 'scenes.py').write_text(CONFIG[:150])
    (work_dir / 'last_checkpoint').unlink()
    seen = text(report.render(report.read(work_dir)))
    for words in ('Not finished: 10', 'timestep_selection.json is not a saved SelectionResult', 'No selection was run',
                  'The run was not evaluated', 'vis_features_0.png is not a whole picture', 'scenes.py is not a whole config'):
        assert words in seen, words


def test_a_selection_alone(tmp_path):
    write_selection(tmp_path, taps=[(2, 'hidden')], interval=None, probability=None, controls={},
                    candidates=[dict(timestep=150, sigma=0, log_snr=None, tap_scores=[1.0], score=1.0)])
    seen = text(report.render(report.read(tmp_path)))
    assert 'No training in this folder' in seen and 't = 150' in seen and '∞' in seen and 'holds no config' in seen


def test_epochs_and_a_test(work_dir):
    session = work_dir / '20261123_100000'
    (session / 'vis_data' / 'scalars.json').write_text(
        entry(5, lr=0.1, loss=2.0, epoch=1) + entry(1, **{'accuracy/top1': 50.0}) + entry(10, lr=0.1, loss=1.0, epoch=2))
    (session / f'{session.name}.json').write_text(json.dumps({'accuracy/top1': 61.5, 'time': 0.1}))
    (work_dir / 'scenes.py').write_text(CONFIG.replace('max_iters=40', 'max_epochs=2'))
    run = report.read(work_dir)
    assert (run.unit, run.total) == ('epoch', 2)
    assert 'accuracy/top1 50 50 1 61.5' in text(report.render(run))


def test_a_folder_without_a_run(tmp_path):
    (tmp_path / 'notes').mkdir()
    with pytest.raises(FileNotFoundError, match='holds no run.*give the work dir'):
        report.read(tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        report.read(tmp_path / 'nothing')


def test_a_chart_has_its_points_marks_and_band():
    lines = {'a': [(0, 1.0), (5, float('nan')), (10, 3.0)], 'b': [(5, 2.0)]}
    drawn = chart(lines, x_label='t', marks=[5], band=(0, 10), strong='b')
    axes, = drawn.axes
    mark, a, b = axes.lines
    assert list(mark.get_xdata()) == [5, 5]
    assert a.get_xydata().tolist() == [[0, 1], [10, 3]] and b.get_xydata().tolist() == [[5, 2]]
    assert b.get_linewidth() > a.get_linewidth() and axes.get_xlabel() == 't'
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((0, 10))
    assert [text.get_text() for text in drawn.legends[0].texts] == ['a', 'b']
    assert chart({'a': [(0, float('nan'))], 'b': []}, x_label='t') is None


def test_a_long_line_is_thinned_and_the_same_figure_gives_the_same_text():
    figures = [chart({'a': [(x, x % 7) for x in range(2000)]}, x_label='t') for _ in range(2)]
    assert len(figures[0].axes[0].lines[0].get_xdata()) == 667
    texts = [data_uri(figure) for figure in figures]
    assert texts[0] == texts[1]
    svg = base64.b64decode(texts[0].partition(',')[2]).decode()
    assert svg.count('<svg') == 1 and '<dc:date>' not in svg


# In a browser


SCRIPT = '''
<script>
const column = k => [...document.querySelectorAll('#candidates tbody tr')].map(row => row.cells[k].textContent).join(' ');
const click = k => document.querySelectorAll('#candidates th button')[k].click();
const said = [];
said.push('t ' + column(0));
click(3); said.push('score down ' + column(0));
click(3); said.push('score up ' + column(0));
click(2); said.push('snr down ' + column(0));
click(2); said.push('snr up ' + column(0));
const charts = [...document.images].filter(image => image.className === 'chart');
const pictures = [...document.images].filter(image => image.className !== 'chart');
said.push('images ' + pictures.map(image => image.naturalWidth + ' by ' + image.naturalHeight).join(', '));
said.push('charts ' + charts.filter(image => image.naturalWidth > 300 && image.width > 300).length);
said.push('wide ' + (document.documentElement.scrollWidth > innerWidth));
document.title = said.join('; ');
</script>
'''


def test_in_a_browser(work_dir, tmp_path):
    """It renders, its pictures are there, and a click on a column's head sorts the table."""
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('no Chromium: on Debian, apt-get install chromium')
    page = tmp_path / 'page.html'
    page.write_text(report.render(report.read(work_dir)).replace('</body>', f'{SCRIPT}</body>'), encoding='utf-8')
    done = subprocess.run([chromium, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--dump-dom',
                           f'--user-data-dir={tmp_path}/user', '--window-size=1200,900', '--virtual-time-budget=3000',
                           page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    said = html.unescape(re.search(r'<title>(.*?)</title>', done.stdout)[1]).split('; ')
    assert said == ['t 40 150 600 999', 'score down 150 40 999 600', 'score up 600 999 40 150', 'snr down 40 150 600 999',
                    'snr up 999 600 150 40', 'images 30 by 20, 30 by 20, 30 by 20', 'charts 5', 'wide false']
