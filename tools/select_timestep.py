"""Chooses the timestep of a config's DiT and stops: no training.

    python tools/select_timestep.py configs/dit_aselect_ade20k.py

prints the score of every candidate and writes timestep_selection.json and .png into the work dir. To train with the choice,
hand the file to the hook, ``custom_hooks=[dict(type='mmaselect.AutoTimestepHook', result='.../timestep_selection.json')]``, or
fix it with ``--cfg-options model.backbone.timestep=T``.
"""
from mmengine.runner import autocast

from mmaselect.openmm import AutoTimestepHook, launch
from mmaselect.openmm.configs import nodes, type_name
from mmaselect.openmm.processes import end
from mmaselect.openmm.safe_load import CheckpointError


def main():
    parser = launch.parser(__doc__.split('\n')[0])
    parser.add_argument('--checkpoint', help='weights to load first, where the DiT was fine-tuned')
    args = parser.parse_args()
    try:
        cfg = launch.load_config(args)
        cfg.load_from, cfg.resume = args.checkpoint, False
        for node in nodes(cfg.model):
            if type_name(node) == 'DiTBackbone':
                node['fold'] = False  # the sweep needs it whole, also where a checkpoint brings a choice
        launch.prepare(cfg)
    except (OSError, ValueError, CheckpointError) as error:
        parser.error(str(error))
    runner = launch.build_runner(cfg)
    runner.load_or_resume()
    with autocast(enabled=args.amp):
        AutoTimestepHook(reselect=True).select(runner)
    runner.logger.info(f'written to {runner.work_dir}/timestep_selection.json and .png')
    end()


if __name__ == '__main__':
    main()
