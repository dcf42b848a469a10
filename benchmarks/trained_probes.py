"""What a trained probe per timestep finds and costs, against one sweep: mmpretrain's own head and runner.

    python benchmarks/trained_probes.py

trains the linear classifier of configs/dit_aselect_fashion_mnist.py at each of 20 timesteps of one tap, on features that are
cached once per timestep, for ``--epochs``, and tests each on ``--test-images``. Beside it several scores choose a timestep from
the config's own images. Seconds are those of ``probes.clock``.
"""
import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

import record
from probes import clock
from record import ROOT

from mmaselect.openmm import DiTBackbone, launch
from mmaselect.openmm.caches.writers import cache_features
from mmaselect.openmm.modules import find_module
from mmaselect.openmm.neck import AutoTimestepNeck
from mmaselect.openmm.sweep_images import training_sample
from mmaselect.selection import sweep
from mmaselect.selection.candidates import candidate_grid


def runner_of(name, work_dir, options):
    """A Runner of a config of ours with these options and one tap."""
    cfg = launch.load_config(launch.parser('').parse_args([str(ROOT / 'configs' / name), '--work-dir', str(work_dir)]))
    cfg.merge_from_dict(dict(dict(log_level='WARNING', default_hooks=dict(checkpoint=None)), **options))
    cfg.experiment_name = f'{Path(name).stem}_{time.time_ns()}'  # MMEngine's name of a Runner, once per process
    launch.prepare(cfg)
    return launch.build_runner(cfg)


def with_dit(args, timestep=None):
    """A Runner with the DiT at a timestep; None leaves the choice open."""
    return runner_of('dit_aselect_fashion_mnist.py', args.work_dir, dict(
        model=dict(backbone=dict(taps=[(args.block, args.tap)], timestep=timestep),
                   neck=dict(num_taps=1, pool='mean', seed=args.seed),
                   head=dict(in_channels=128)),
        val_dataloader=dict(dataset=dict(indices=args.test_images))))


def trained(args, timestep):
    """Accuracy of the probe of a timestep, in per cent, and that in the middle of its training."""
    folder = args.work_dir / f't{timestep}'
    shutil.rmtree(folder, ignore_errors=True)
    cache_features(with_dit(args, timestep), folder, ['train', 'val'], batch_size=100)
    val = dict(dataset=dict(indices=args.test_images, pipeline=[
        dict(type='mmaselect.LoadFeatures', cache=f'{folder}/val'), dict(type='PackInputs')]))
    runner = runner_of('cached/linear_probe_fashion_mnist.py', args.work_dir, dict(
        model=dict(backbone=dict(cache=str(folder)), neck=dict(num_taps=1, pool='mean'), head=dict(in_channels=128)),
        train_dataloader=dict(dataset=dict(pipeline=[
            dict(type='mmaselect.LoadFeatures', cache=f'{folder}/train'), dict(type='PackInputs')])),
        val_dataloader=val, test_dataloader=val, randomness=dict(seed=args.seed),
        train_cfg=dict(max_epochs=args.epochs, val_interval=args.epochs // 2), param_scheduler=dict(T_max=args.epochs)))
    runner.train()
    shutil.rmtree(folder)
    halfway, *_, final = runner.message_hub.get_scalar('val/accuracy/top1').data[0].tolist()
    return final, halfway


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--timesteps', type=int, default=20)
    parser.add_argument('--test-images', type=int, default=4000)
    parser.add_argument('--block', type=int, default=5)
    parser.add_argument('--tap', default='hidden')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--scores', nargs='+', default=['hfr', 'half_consistency', 'ridge'])
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'trained_probes')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'trained_probes.json')
    args = parser.parse_args()
    head, accuracy, halfway, start = record.head(), {}, {}, clock()
    for t in candidate_grid(1000, args.timesteps):
        accuracy[t], halfway[t] = trained(args, t)
        print(f't={t}: {accuracy[t]:.2f} % ({halfway[t]:.2f} % halfway), {clock() - start:.0f} s so far', flush=True)
    trained_seconds = clock() - start
    oracle = max(accuracy, key=accuracy.get)

    rows = []
    for score in args.scores:
        runner = with_dit(args)
        backbone, neck = (find_module(runner.model, kind) for kind in (DiTBackbone, AutoTimestepNeck))
        start = clock()
        images = training_sample(runner.cfg, runner.model, neck.policy)
        result = sweep(backbone.unfolded(), images, replace(neck.policy, score=score, controls=(), candidates=list(accuracy)))
        seconds = clock() - start
        rows.append(dict(
            setting='classification, trained probes', model='latent', dataset='Fashion-MNIST, 2,000 labels', block=args.block,
            tap=args.tap, score=score, seed=args.seed, oracle_t=oracle, oracle=round(accuracy[oracle], 2),
            chosen_t=result.timestep, chosen=round(accuracy[result.timestep], 2),
            regret_points=round(accuracy[oracle] - accuracy[result.timestep], 2), images=len(images),
            seconds=round(seconds, 1), exhaustive_seconds=round(trained_seconds, 1)))
    head.update(accuracy=accuracy, halfway=halfway)
    record.write(args.out, head, rows)
    for row in rows:
        print(f'{row["score"]:20} t={row["chosen_t"]:4} {row["chosen"]:.2f} % regret {row["regret_points"]:.2f} '
              f'{row["seconds"]:.1f} s, 1/{row["exhaustive_seconds"] / row["seconds"]:.0f} of the trained probes')
    print(f'best of the trained probes: t={oracle}, {accuracy[oracle]:.2f} %, {trained_seconds:.0f} s; written to {args.out}')


if __name__ == '__main__':
    main()
