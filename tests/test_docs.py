"""What README.md and docs/ tell users to type exists: scripts, options, make targets, files; and their Python blocks run.

A block may be marked by a comment before it, ``<!-- needs a GPU -->`` or the like: its Python is then compiled but not run.
Commands are never run here, since other tests run the tools.
"""
import contextlib
import functools
import importlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import by_hand
import pytest
import runs
import tiny
import torch
from mmengine.registry import MODELS, init_default_scope

from mmaselect.openmm import configs, launch
from mmaselect.selection import SelectionResult, candidates, scores
from mmaselect.selection.candidates import candidate_grid

PAGES = [runs.ROOT / 'README.md', runs.ROOT / 'CONTRIBUTING.md', *sorted((runs.ROOT / 'docs').glob('*.md'))]
SHELL = ('', 'bash', 'sh', 'shell', 'console')
# What is not ours to check, and the scripts whose options a script hands on.
FOREIGN = {'mim', 'pip', 'git', 'source', 'cd', 'export', 'pre-commit'}
HANDS_ON = {'tools/dist_train.sh': 'tools/train.py', 'tools/slurm_train.sh': 'tools/train.py',
            'tools/dist_test.sh': 'tools/test.py', 'tools/slurm_test.sh': 'tools/test.py'}
# Folders that come with the repository; others, such as data/ and work_dirs/, come into being later.
SHIPPED = ('configs/', 'tools/', 'benchmarks/', 'mmaselect/', 'tests/', 'docs/')


def blocks(text):
    """(language, mark, content) of each fenced or indented block; the language of an indented one is ''."""
    mark = r'(?:<!-- (needs .*?) -->\n+)?'
    fenced = re.compile(mark + r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
    indented = re.compile(mark + r'^()((?: {4}.*\n)+)', re.MULTILINE)
    found = [*fenced.finditer(text), *indented.finditer(fenced.sub('', text))]
    return [(m[2], m[1], m[3]) for m in found]


def commands(text):
    """The words of each command, without the environment variables that are set before it."""
    for language, _, body in blocks(text):
        if language in SHELL:
            for line in body.replace('\\\n', ' ').splitlines():
                words = shlex.split(line.strip().removeprefix('$ '), comments=True)
                while words and re.match(r'\w+=', words[0]):
                    words.pop(0)
                if words and (language or is_command(words[0])):
                    yield words


def is_command(word):
    """Whether an indented line that begins with it is meant as a command: others show a layout of folders or an output."""
    return word in {'make', 'python', 'bash', *FOREIGN}


@functools.cache
def help_of(script):
    """What the script prints for --help."""
    argv, sys.argv = sys.argv, [script, '--help']
    sys.path.insert(0, str((runs.ROOT / script).parent))  # as python does it for a script
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
            runpy.run_module(script, run_name='__main__') if script == 'mmaselect' else \
                runpy.run_path(str(runs.ROOT / script), run_name='__main__')
    finally:
        sys.argv = argv
        sys.path.pop(0)
    return printed.getvalue()


def problems(words):
    """What is wrong with a command, a sentence each."""
    program, *rest = words
    if program == 'make':
        targets = re.findall(r'^([\w-]+):', (runs.ROOT / 'Makefile').read_text(), re.MULTILINE)
        return [f'no target {target}' for target in rest if '=' not in target and target not in targets]
    if program == 'pip' and rest[:1] == ['install']:
        extras = [name for word in rest for group in re.findall(r'\[(.+)\]', word) for name in group.split(',')]
        return [f'no extra {name}' for name in extras if f"'{name}': [" not in (runs.ROOT / 'setup.py').read_text()]
    if program in FOREIGN:
        return []
    if program not in ('python', 'bash'):
        return [f'unknown program {program}']
    script = rest[1] if rest[0] == '-m' else rest[0]
    if rest[0] == '-m' and script != 'mmaselect':
        return []
    missing = [word for word in rest if word.startswith(SHIPPED) and not (runs.ROOT / word).exists()]
    if missing:
        return [f'no such file {name}' for name in missing]
    known = help_of(HANDS_ON.get(script, script))
    return [f'{script} has no option {word}' for word in (w.partition('=')[0] for w in rest)
            if word.startswith('--') and not re.search(rf'{word}\b(?!-)', known)]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_name_what_exists(page):
    wrong = [f'{shlex.join(words)}: {problem}' for words in commands(page.read_text()) for problem in problems(words)]
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, monkeypatch):
    """One after the other, as in a notebook, so that a later one may use what an earlier one made."""
    monkeypatch.chdir(runs.ROOT)
    monkeypatch.setattr(scores, 'SCORES', dict(scores.SCORES))  # an example registers one of its own
    monkeypatch.setattr(candidates, 'candidate_grid', lambda steps, count=20: candidate_grid(steps, 4))  # 20 take long
    names = {}
    for number, (language, mark, body) in enumerate(blocks(page.read_text())):
        if language == 'python':
            code = compile(body, f'{page.name}, block {number}', 'exec')
            if not mark:
                exec(code, names)
                if 'model = dict(' in body:
                    check_the_model_is_built(names['model'])


def check_the_model_is_built(model):
    """And gives an image's logits, with a shallow DiT of random weights and the same width."""
    init_default_scope('mmseg')
    width = model['neck']['in_channels']
    transformer = dict(tiny.DIT, attention_head_dim=width // 2, num_layers=2)
    taps = [(1, name) for _, name in model['backbone']['taps']]
    backbone = dict(model['backbone'], pretrained=None, arch=dict(transformer=transformer, vae=tiny.VAE), taps=taps, timestep=100)
    built = MODELS.build(dict(model, backbone=backbone)).eval()
    with torch.no_grad():
        logits = built(tiny.images(1, 16, 24))
    assert logits.shape == (1, model['decode_head']['num_classes'], 16, 24) and logits.std() > 0


# The config that README.md calls the reader's own -> a stock one in its place, and where that looks for its data.
STOCK = {'my_upernet.py': ('mmseg', 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', 'data/ade/ADEChallengeData2016'),
         'my_resnet.py': ('mmpretrain', 'resnet/resnet50_8xb8_cub.py', 'data/CUB_200_2011')}


@pytest.mark.parametrize('base', STOCK)
def test_the_swap_of_the_readme_trains(base, data, tmp_path, monkeypatch, evaluated):
    """On a tiny DiT and tiny images; no other word of it is changed."""
    with runs.blank_curves():
        train_the_swap(base, data, tmp_path, monkeypatch, evaluated)


def train_the_swap(base, data, tmp_path, monkeypatch, evaluated):
    toolbox, stock, root = STOCK[base]
    stock = Path(importlib.import_module(toolbox).__path__[0], '.mim', 'configs', stock)
    body, = (body for _, _, body in blocks((runs.ROOT / 'README.md').read_text()) if f"'{base}'" in body)
    path = tmp_path / f'swapped_{base}'
    path.write_text(body.replace(f"'{base}'", repr(str(stock))) + f'data_root = {root!r}\n')
    monkeypatch.setitem(runs.CONFIGS, path.stem, path)
    changes = {'model.backbone.taps': [(2, 'hidden')], 'launcher': 'none'}
    changes.update({'train_cfg.max_iters': 1, 'train_cfg.val_interval': 1} if toolbox == 'mmseg' else {
        'train_dataloader.batch_size': 12})
    cfg = runs.config(path.stem, data, tmp_path / 'run', changes)
    configs.fill_dataloaders(cfg)
    launch.prepare(cfg)
    runner = launch.build_runner(cfg)
    runner.train()
    result = SelectionResult.load(tmp_path / 'run' / 'timestep_selection.json')
    assert [c.timestep for c in result.candidates] == [40, 150, 600]
    assert runner.iter == 1 and runner.model.backbone.chosen == result.timestep == by_hand.choice(result)
    logged = runner.message_hub.log_scalars['val/mIoU' if toolbox == 'mmseg' else 'val/accuracy/top1'].current()
    assert logged == pytest.approx(evaluated.metric(), abs=0.006)
    assert not any(p.requires_grad for p in runner.model.backbone.parameters())


def test_files_of_the_architecture_exist():
    """Its tables and ways name files by their place in the package, or in the repository."""
    page = (runs.ROOT / 'docs' / 'architecture.md').read_text()
    named = set(re.findall(r'(?<![\w/.])((?:\w+/)+(?:\w+\.py)?)(?![\w/])', page))
    assert {'extract/latent.py', 'selection/scores/', 'configs/_base_/datasets/fashion_scenes.py'} <= named
    assert not [name for name in named if not any((root / name).exists() for root in (runs.ROOT, runs.ROOT / 'mmaselect'))]


PAGE = """
    make tets
    python tools/trian.py configs/dit_aselect_cub.py

```bash
FOO=1 python tools/train.py \\
    configs/dit_aselect_cub.py --resum
bash tools/dist_train.sh configs/nothing.py 8
frobnicate
pip install -e '.[onedl,typo]'
python tools/train.py configs/dit_aselect_cub.py --resume --cfg-options a=1  # nothing wrong here
```

    folder/
        file
"""


def test_the_check_finds_what_is_wrong():
    assert {problem for words in commands(PAGE) for problem in problems(words)} == {
        'no target tets', 'no such file tools/trian.py', 'tools/train.py has no option --resum',
        'no such file configs/nothing.py', 'unknown program frobnicate', 'no extra typo'}


def test_blocks_are_told_apart():
    text = 'Text\n\n    make demo\n\n<!-- needs a GPU -->\n\n```python\nx = 1\n```\n'
    assert blocks(text) == [('python', 'needs a GPU', 'x = 1\n'), ('', None, '    make demo\n')]
