"""Shipped configs on tiny models and images: data in the datasets' own layouts, settings that make a run last a second."""
import contextlib
import io
import os
import runpy
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import tiny
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin
from PIL import Image
from yapf.yapflib import yapf_api

# A Runner formats its config five times, which takes longer than all else in a tiny run.
yapf_api.FormatCode = lambda text, *_, **__: (text, True)

ROOT = Path(__file__).parents[1]
CONFIGS = {
    name: ROOT / 'configs' / f'dit_{name}.py'
    for name in ('aselect_fashion_scenes', 'random_fashion_scenes', 'aselect_ade20k', 'aselect_ade20k_sd3', 'aselect_cub',
                 'aselect_fashion_mnist', 'random_fashion_mnist')
}
WIDTH = tiny.DIT['num_attention_heads'] * tiny.DIT['attention_head_dim']
TRAIN, VAL = 6, 3  # images


def picture(rng, height, width):
    """A colour with some texture, (height, width, 3) uint8: images that differ, as view_consistency wants."""
    return (rng.uniform(40, 215, 3) + rng.normal(0, 15, (height, width, 3))).clip(0, 255).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def mask(rng, height, width, labels):
    """Four rectangles of labels, (height, width) uint8."""
    return np.kron(rng.choice(labels, (2, 2)), np.ones((height // 2, width // 2), int)).astype(np.uint8)


def write_fashion_scenes(root):
    rng = np.random.default_rng(0)
    for split, count in (('train', TRAIN), ('val', VAL)):
        for index in range(count):
            save(root / 'img_dir' / split / f'{index:06d}.png', picture(rng, 32, 32))
            save(root / 'ann_dir' / split / f'{index:06d}.png', mask(rng, 32, 32, np.arange(11)))


def write_ade20k(root):
    """Images of different sizes; 0 in the masks is what ADE20K leaves unlabelled."""
    rng = np.random.default_rng(1)
    for split, count in (('training', TRAIN), ('validation', VAL)):
        for index in range(count):
            height, width = (int(2 * side) for side in rng.integers(20, 36, 2))
            name = f'ADE_{split[:5]}_{index:08d}'
            save(root / 'images' / split / f'{name}.jpg', picture(rng, height, width))
            save(root / 'annotations' / split / f'{name}.png', mask(rng, height, width, np.arange(151)))


def write_cub(root, classes=4, per_class=4):
    """Sorted by class, as the real one. Of each class one image is for testing."""
    rng = np.random.default_rng(2)
    lines = dict(images=[], image_class_labels=[], train_test_split=[])
    for label in range(1, classes + 1):
        for index in range(per_class):
            name = f'{label:03d}.Bird/Bird_{index:04d}.jpg'
            save(root / 'images' / name, picture(rng, 40, 48))
            number = len(lines['images']) + 1
            for key, value in (('images', name), ('image_class_labels', label), ('train_test_split', int(index > 0))):
                lines[key].append(f'{number} {value}')
    for key, values in lines.items():
        (root / f'{key}.txt').write_text('\n'.join(values) + '\n')


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f'>I{array.ndim}I', 0x800 + array.ndim, *array.shape) + array.tobytes())


def write_fashion_mnist(root, train=12, test=8):
    """Bright garments on black; the two parts differ in size, so that one cannot pass for the other."""
    rng = np.random.default_rng(3)
    for part, count in (('train', train), ('t10k', test)):
        images = np.zeros((count, 28, 28), np.uint8)
        for image in images:
            top, left = rng.integers(2, 8, 2)
            image[top:28 - top, left:28 - left] = rng.integers(60, 256)
        write_idx(root / f'{part}-images-idx3-ubyte', images)
        write_idx(root / f'{part}-labels-idx1-ubyte', (np.arange(count) % 10).astype(np.uint8))


def write_all(root):
    """All four datasets below ``root``."""
    for name, write in (('fashion_scenes', write_fashion_scenes), ('ade20k', write_ade20k), ('cub', write_cub),
                        ('fashion_mnist', write_fashion_mnist)):
        write(root / name)
    return root


def segments(name):
    """Whether a config trains a segmentor, by iterations; else it is a classifier, by epochs."""
    return not name.endswith(('cub', 'mnist'))


def everywhere(key, value):
    return {f'{loader}_dataloader.{key}': value for loader in ('train', 'val', 'test')}


def model_options(name):
    """A tiny model in place of the shipped one; of the controls, which are small, only the VAE is replaced."""
    vae = {f'model.backbone.arch.vae.{key}': value for key, value in tiny.VAE.items()}
    if name.startswith('random'):
        return vae
    sd3 = name.endswith('sd3')
    options = {
        'model.backbone.pretrained': None, **vae,
        **{f'model.backbone.arch.transformer.{key}': value for key, value in (tiny.SD3 if sd3 else tiny.DIT).items()},
        'model.backbone.taps': [(block, 'hidden') for block in range(4)] if segments(name) else [(2, 'hidden')],
        'model.neck.in_channels': WIDTH,
    }
    if sd3:
        options.update({'model.backbone.arch.scheduler': tiny.FLOW, 'model.backbone.taps': [(2, 'query')]})
    if not segments(name):
        return {**options, 'model.neck.num_taps': 1, 'model.head.in_channels': WIDTH}
    options.update({'model.decode_head.in_channels': [WIDTH] * 4, 'model.decode_head.channels': 8})
    if 'ade20k' in name:
        options.update({'model.auxiliary_head.in_channels': WIDTH, 'model.auxiliary_head.channels': 8})
    return options


def options(name, data):
    """What to merge into a config so that it runs on the data below ``data`` in a second, as --cfg-options takes it."""
    dataset = name.partition('_')[2].removesuffix('_sd3')
    common = {
        **model_options(name),
        'model.neck.candidates': [40, 150, 600],
        'model.neck.num_images': 6,
        **everywhere('dataset.data_root', str(data / dataset)),
        'default_hooks.logger.interval': 1,
    }
    seg = {
        'model.data_preprocessor.size': (32, 32), 'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 1,
    }
    cls = {'train_dataloader.batch_size': 4, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1}
    workers = {**everywhere('num_workers', 0), **everywhere('persistent_workers', False)}
    if dataset == 'fashion_scenes':
        return {**common, **seg, 'default_hooks.visualization.interval': 1}
    if dataset == 'ade20k':
        return {
            **common, **seg, **workers,
            'model.test_cfg.crop_size': (32, 32), 'model.test_cfg.stride': (21, 21),
            'train_dataloader.dataset.pipeline.2.scale': (128, 32), 'train_dataloader.dataset.pipeline.3.crop_size': (32, 32),
            # The last is where mmseg's inference API looks.
            **dict.fromkeys(('val_dataloader.dataset.pipeline.1.scale', 'test_dataloader.dataset.pipeline.1.scale',
                             'test_pipeline.1.scale'), (128, 40)),
        }
    if dataset == 'cub':
        return {**common, **cls, **workers, **everywhere('dataset.pipeline.1.scale', 36),
                **everywhere('dataset.pipeline.2.crop_size', 32)}
    # indices counts the images used; MMEngine wants more than that to be there.
    return {**common, **cls, **everywhere('dataset.pipeline.2.size', 32), 'train_dataloader.dataset.indices': 8}


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
    cfg = Config.fromfile(CONFIGS[name])
    cfg.merge_from_dict({**options(name, data), **(changes or {})})
    cfg.work_dir = str(work_dir)
    return cfg


def runner(*args, **kwargs):
    return Runner.from_cfg(config(*args, **kwargs))


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
