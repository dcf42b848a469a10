"""Writes a trained model that needs nothing else: a config and a checkpoint that holds the frozen weights too.

    python tools/publish_model.py configs/dit_aselect_fashion_scenes.py work_dirs/dit_aselect_fashion_scenes/iter_2000.pth OUT

A training's checkpoint refers to the frozen weights of backbone.pretrained. OUT/<config>.py has the sizes of the DiT in its place
and the timestep and the taps that were chosen; init_model, the inferencers and tools/test.py take the two files.
"""
import argparse
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from mmaselect.extract.loading import arch_of
from mmaselect.files import new_folder
from mmaselect.openmm import DiTBackbone
from mmaselect.openmm.configs import leave_out_levels, merge_data_preprocessor, nodes, type_name
from mmaselect.openmm.modules import find_module
from mmaselect.openmm.safe_load import CheckpointError, load
from mmaselect.registry import MODELS


def publish(cfg: Config, checkpoint: dict) -> tuple[Config, dict]:
    """The config and the checkpoint of a self-contained model.

    Raises:
        ValueError: The model has no DiTBackbone or no timestep, or is not that of the config.
    """
    init_default_scope(cfg.default_scope)
    merge_data_preprocessor(cfg)
    leave_out_levels(cfg)  # as in the training
    model = MODELS.build(cfg.model)
    backbone = find_module(model, DiTBackbone)
    if backbone is None:
        raise ValueError('the config has no DiTBackbone, whose frozen weights a checkpoint leaves out')
    model.load_state_dict(checkpoint['state_dict'])
    if backbone.chosen is None:
        raise ValueError('the checkpoint has no timestep: give one of a training, or fix backbone.timestep')
    backbone.origin.refers = False  # so that all weights are stored
    timesteps = list(backbone.timesteps)
    changes = dict(pretrained=None, variant=None, revision=None, dtype=None, taps=[list(tap) for tap in backbone.extractor.taps],
                   timestep=timesteps if len(timesteps) > 1 else timesteps[0])
    for node in nodes(cfg.model):
        if type_name(node) == 'DiTBackbone':
            node.update(changes, arch=node.get('arch') or arch_of(backbone.origin.pretrained, node.get('revision')))
    return cfg, dict(meta=checkpoint.get('meta', {}), state_dict=model.state_dict())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', type=Path, help='of the training')
    parser.add_argument('checkpoint', help='that tools/train.py wrote')
    parser.add_argument('out', type=Path, help='folder to write, which is not there yet')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='replace settings of the config: model.backbone.pretrained=FOLDER')
    args = parser.parse_args()
    try:
        with new_folder(args.out) as part:
            cfg = Config.fromfile(args.config)
            cfg.merge_from_dict(args.cfg_options)
            cfg, checkpoint = publish(cfg, load(args.checkpoint, 'cpu'))
            checkpoint['meta'].pop('cfg', None)  # names the folder of the DiT
            cfg.dump(part / args.config.name)
            torch.save(checkpoint, part / f'{args.config.stem}.pth')
    except (OSError, ValueError, KeyError, RuntimeError, CheckpointError) as error:
        parser.error(str(error))
    size = (args.out / f'{args.config.stem}.pth').stat().st_size
    print(f'wrote {args.out}: {args.config.name} and {args.config.stem}.pth, {size / 1e6:,.1f} MB')


if __name__ == '__main__':
    main()
