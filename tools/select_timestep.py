"""Chooses the timestep of a config's DiT and stops: no training.

    python tools/select_timestep.py configs/dit_aselect_ade20k.py

prints the score of every candidate and writes timestep_selection.json and .png into the work dir. To train with the choice,
run tools/train.py on the same config, which makes the same choice, or fix it with
``--cfg-options model.backbone.timestep=T``.
"""
from mmengine.runner import autocast

from mmaselect.openmm import AutoTimestepHook
from mmaselect.openmm.launch import build_runner, check_checkpoint, load_config, parser


def main():
    options = parser(__doc__.split('\n')[0])
    options.add_argument('--checkpoint', help='weights to load first, where the DiT was fine-tuned')
    args = options.parse_args()
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.checkpoint:
        check_checkpoint(args.checkpoint)
    runner = build_runner(cfg)
    runner.load_or_resume()
    with autocast(enabled=args.amp):
        AutoTimestepHook(reselect=True).select(runner)
    print(f'written to {runner.work_dir}/timestep_selection.json and .png')


if __name__ == '__main__':
    main()
