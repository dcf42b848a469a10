"""What a trained probe per timestep finds and costs, against one sweep: mmpretrain's own head and runner.

    python benchmarks/trained_probes.py

trains the linear classifier of configs/dit_aselect_fashion_mnist.py at each of 20 timesteps of one tap, with its schedule cut to
``--epochs``, tests each on the 10,000 test images, and lets the config's own policy choose a timestep for several scores. Seconds
are those of ``probes.clock``.
"""
import argparse
from pathlib import Path

import record
from probes import clock
from record import ROOT

from mmaselect.openmm import DiTBackbone, hook, launch
from mmaselect.openmm.neck import AutoTimestepNeck
from mmaselect.selection import sweep
from mmaselect.selection.candidates import even


def runner_of(work_dir, epochs, seed, tap, timestep):
    """A Runner of the config with one tap; timestep None leaves the choice open."""
    cfg = launch.load_config(launch.parser('').parse_args(
        [str(ROOT / 'configs' / 'dit_aselect_fashion_mnist.py'), '--work-dir', str(work_dir)]))
    cfg.merge_from_dict(dict(
        model=dict(backbone=dict(taps=[tap], timestep=timestep), neck=dict(num_taps=1, seed=seed), head=dict(in_channels=128)),
        train_cfg=dict(max_epochs=epochs, val_interval=epochs + 1), param_scheduler=dict(T_max=epochs),
        randomness=dict(seed=seed), log_level='WARNING',
        default_hooks=dict(checkpoint=None)))
    cfg.experiment_name = f'{Path(work_dir).name}_{timestep}_{seed}'  # MMEngine's name of a Runner, once per process
    launch.prepare(cfg)
    return launch.build_runner(cfg)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--timesteps', type=int, default=20)
    parser.add_argument('--block', type=int, default=5)
    parser.add_argument('--tap', default='hidden')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--scores', nargs='+', default=['hfr', 'half_consistency', 'ridge'])
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'trained_probes')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'trained_probes.json')
    args = parser.parse_args()
    head, tap, accuracy = record.head(), (args.block, args.tap), {}
    start = clock()
    for t in even(1000, args.timesteps):
        runner = runner_of(args.work_dir, args.epochs, args.seed, tap, t)
        runner.train()
        accuracy[t] = runner.test()['accuracy/top1']
        print(f't={t}: {accuracy[t]:.2f} %, {clock() - start:.0f} s so far', flush=True)
    trained_seconds = clock() - start
    oracle = max(accuracy, key=accuracy.get)

    rows = []
    for score in args.scores:
        runner = runner_of(args.work_dir, args.epochs, args.seed, tap, None)
        model = runner.model
        backbone, neck = hook.find(model, DiTBackbone), hook.find(model, AutoTimestepNeck)
        start = clock()
        images = hook.images_of(runner.cfg, model, neck, neck.num_images)
        result = sweep(backbone.extractor, images, **dict(neck.policy, score=score, controls=(), candidates=list(accuracy)))
        seconds = clock() - start
        rows.append(dict(
            setting='classification, trained probes', model='latent', dataset='Fashion-MNIST, 2,000 labels', block=args.block,
            tap=args.tap, score=score, seed=args.seed, oracle_t=oracle, oracle=round(accuracy[oracle], 2),
            chosen_t=result.timestep, chosen=round(accuracy[result.timestep], 2),
            regret_points=round(accuracy[oracle] - accuracy[result.timestep], 2), images=neck.num_images,
            seconds=round(seconds, 1), exhaustive_seconds=round(trained_seconds, 1)))
    head['accuracy'] = {t: round(value, 2) for t, value in accuracy.items()}
    record.write(args.out, head, rows)
    for row in rows:
        print(f'{row["score"]:20} t={row["chosen_t"]:4} {row["chosen"]:.2f} % regret {row["regret_points"]:.2f} '
              f'{row["seconds"]:.1f} s, 1/{row["exhaustive_seconds"] / row["seconds"]:.0f} of the trained probes')
    print(f'best of the trained probes: t={oracle}, {accuracy[oracle]:.2f} %, {trained_seconds:.0f} s; written to {args.out}')


if __name__ == '__main__':
    main()
