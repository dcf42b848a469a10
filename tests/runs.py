"""Shipped configs on tiny models and the images of layouts.py, with settings that make a run last a second."""
import contextlib
import copy
import functools
import io
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import layouts
import pytest
import tiny
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin
from yapf.yapflib import yapf_api

from mmaselect.extract.loading import class_of
from mmaselect.selection import SelectionResult

# A Runner formats its config five times, which takes longer than all else in a tiny run.
yapf_api.FormatCode = lambda text, *_, **__: (text, True)

ROOT = Path(__file__).parents[1]
CONFIGS = {path.stem.removeprefix('dit_'): path for path in sorted((ROOT / 'configs').glob('*.py'))}
WIDTH = tiny.DIT['num_attention_heads'] * tiny.DIT['attention_head_dim']
GRID = 2  # parts along a side that a neck with pool='grid' gives
FAMILIES = dict(tiny.TEXT_TO_IMAGE, sd3=tiny.SD3, pixart=tiny.PIXART, lightningdit=tiny.LIGHTNING)
WIDTHS = dict.fromkeys(('flux', 'flux2', 'flux2_klein', 'lumina2', 'z_image', 'qwen_image', 'prx'), 32) | dict(pixart=24)
TRAIN, VAL = layouts.TRAIN, layouts.VAL  # images
CURVE = SelectionResult.figure


@functools.cache
def shipped(name):
    """A config as it is. Not to be changed: parsing takes long, so it is done once."""
    return Config.fromfile(CONFIGS[name])


def family_of(name):
    """Which of FAMILIES a config's checkpoint is; '' for DiT."""
    return next((family for family in FAMILIES if name.endswith(f'_{family}')), '')


def lacking(name):
    """Whether this environment's diffusers or PyTorch is too old for a config's transformer."""
    try:
        class_of(FAMILIES.get(family_of(name), dict(type='DiTTransformer2DModel'))['type'])
    except ValueError:
        return True
    return False


def segments(name):
    """Whether a config trains a segmentor, by iterations; else it is a classifier, by epochs."""
    return shipped(name).default_scope == 'mmseg'


def model_options(name):
    """A tiny model in place of the shipped one; of the controls, which are small, only the VAE is replaced."""
    family = family_of(name)
    vae = tiny.FLUX2_VAE if family.startswith('flux2') else tiny.VAE
    vae = {f'model.backbone.arch.vae.{key}': value for key, value in vae.items()}
    if name.startswith('random'):
        return vae if 'vae' in shipped(name).model.backbone.arch else {}
    transformer, width = FAMILIES.get(family, tiny.DIT), WIDTHS.get(family, WIDTH)
    model = shipped(name).model
    options = {
        'model.backbone.pretrained': None, **vae,
        **{f'model.backbone.arch.transformer.{key}': value for key, value in transformer.items()},
        'model.backbone.taps': [(block, 'hidden') for block in range(4)] if segments(name) else [(2, 'hidden')],
        'model.neck.in_channels': width,
    }
    if family:
        options.update({'model.backbone.arch.scheduler': tiny.FLOW, 'model.backbone.dtype': None,
                        'model.backbone.taps': [(2, model.backbone.taps[0][1])]})
    if not segments(name):
        cells = GRID**2 if model.neck.get('pool') == 'grid' else 1
        return {**options, 'model.neck.num_taps': 1, 'model.neck.num_heads': 4, 'model.neck.grid': GRID,
                'model.head.in_channels': WIDTH * cells}
    for head in ('decode_head', 'auxiliary_head'):
        if model.get(head):
            one = width * (4 if model.neck.output == 'map' else 1)
            several = isinstance(model[head].in_channels, list)
            options.update({f'model.{head}.in_channels': [width] * 4 if several else one, f'model.{head}.channels': 8})
    return options


def divided(size, by):
    return size // by if isinstance(size, int) else tuple(side // by for side in size)


def data_options(name, data):
    """The tiny images, and every size in pixels of pipelines and model divided by the same number."""
    cfg = shipped(name)
    by = 2 if 'fashion' in name else 4 if 'camvid' in name else 16
    options = {}

    def shrink(tree, place):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if key in ('scale', 'crop_size', 'stride', 'size') and isinstance(value, (int, tuple)):
                options[f'{place}.{key}'] = divided(value, by)
            elif key == 'data_root':
                options[f'{place}.{key}'] = str(data / layouts.LAYOUTS[cfg.data_root][0])
            elif isinstance(value, (dict, list)):
                shrink(value, f'{place}.{key}')

    for place in ('train_dataloader.dataset', 'val_dataloader.dataset', 'test_dataloader.dataset', 'model.data_preprocessor',
                  'model.test_cfg', 'test_pipeline'):  # the last is where mmseg's inference API looks
        tree = cfg
        for key in place.split('.'):
            tree = tree.get(key) or {}
        shrink(tree, place)
    for loader in ('train', 'val', 'test'):
        options.update({f'{loader}_dataloader.num_workers': 0, f'{loader}_dataloader.persistent_workers': False})
    return options


def options(name, data):
    """What to merge into a config so that it runs on the data below ``data`` in a second, as --cfg-options takes it."""
    options = {
        **model_options(name),
        **data_options(name, data),
        'model.neck.selection.candidates': [40, 150, 600],
        'model.neck.selection.num_images': 6,
        'default_hooks.logger.interval': 1,
    }
    if segments(name):
        options.update({'train_dataloader.batch_size': 2, 'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2,
                        'default_hooks.checkpoint.interval': 1})
    else:
        options.update({'train_dataloader.batch_size': 4, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1})
    if name.endswith('fashion_scenes'):
        options['default_hooks.visualization.interval'] = 1
    if name.endswith('fashion_mnist'):
        options['train_dataloader.dataset.indices'] = 8  # counts the images used; MMEngine wants more than that to be there
    elif shipped(name).train_dataloader.dataset.get('indices'):
        options['train_dataloader.dataset.indices'] = 4
    optim_wrapper = shipped(name).optim_wrapper
    if optim_wrapper.get('type') == 'AmpOptimWrapper' and not torch.cuda.is_available():  # it asserts an accelerator
        options['optim_wrapper'] = {'_delete_': True, 'type': 'OptimWrapper', **{
            key: optim_wrapper[key] for key in ('optimizer', 'constructor', 'paramwise_cfg') if key in optim_wrapper}}
    return options


def words(options):
    """The same as command-line words."""
    return ['--cfg-options', *(f'{key}={str(value).replace(" ", "")}' for key, value in options.items())]


def forget():
    """Drops MMEngine's process-wide loggers, visualizers, message hubs and default scope, which outlive a Runner."""
    def drop(cls):
        cls._instance_dict.clear()
        for child in cls.__subclasses__():
            drop(child)
    drop(ManagerMixin)


def config(name, data, work_dir, changes=None):
    """The tiny version of a shipped config, with ``changes`` merged last."""
    forget()
    cfg = copy.deepcopy(shipped(name))
    cfg.merge_from_dict({**options(name, data), **(changes or {})})
    cfg.work_dir = str(work_dir)
    return cfg


@contextlib.contextmanager
def blank_curves(draw=False):
    """A blank sheet in place of the curve of a selection, which takes about as long to draw as a tiny run; or, within, the curve
    again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SelectionResult, 'figure', CURVE if draw else lambda self: Figure(figsize=(7, 4)))
        yield


def runner(*args, **kwargs):
    return Runner.from_cfg(config(*args, **kwargs))


def images_of(*args, **kwargs):
    """What of a Runner gives images: its config, and its data_preprocessor. Building all of one takes long."""
    cfg = config(*args, **kwargs)
    init_default_scope(cfg.default_scope)
    return SimpleNamespace(cfg=cfg, model=SimpleNamespace(data_preprocessor=MODELS.build(cfg.model.data_preprocessor)))


def run_here(script, *arguments):
    """Runs a tool in this process, which spares the seconds that a new one takes to import, and gives what it printed."""
    forget()
    argv, launched = sys.argv, os.environ.pop('LOCAL_RANK', None)
    sys.argv = [str(script), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(str(script), run_name='__main__')
    finally:
        sys.argv = argv
        os.environ.pop('LOCAL_RANK', None)  # set by the tool
        if launched:
            os.environ['LOCAL_RANK'] = launched
        forget()
    return printed.getvalue()


def free_port():
    with socket.socket() as listener:
        listener.bind(('', 0))
        return listener.getsockname()[1]


def run(*command, code=0, timeout=600, **environment):
    """Runs a tool in a process of its own and gives what it printed; it must end with ``code``."""
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    env = {**os.environ, 'PYTHONPATH': path, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', **environment}
    done = subprocess.run([*map(str, command)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=timeout, check=False)
    assert done.returncode == code, f'{command[:3]} ended with {done.returncode}, not {code}:\n{done.stdout[-5000:]}'
    return done.stdout


def spied(name, folder):
    """A config file that is the shipped one and imports spy.py."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{name}.py'
    path.write_text(f"_base_ = ['{CONFIGS[name]}']\n"
                    "custom_imports = dict(imports=['mmaselect.openmm', 'spy'], allow_failed_imports=False)\n")
    return path
