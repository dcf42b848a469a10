"""Rules that choose a timestep, and the tables of what each loses against the best timestep.

    python benchmarks/rules.py                                  # from the rows of this repository, in seconds
    python benchmarks/rules.py work_dirs/selection.csv.gz

A rule is a function of what a sweep of one setting and seed has seen (``Seen``) to a place among the timesteps, for each tap. The
constants are rules too, and so is 'default', which is what a user gets without options.
"""
import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import record
import torch

from mmaselect.selection.choice import plateau_centre

RESULTS = record.ROOT / 'benchmarks' / 'results'
FIGURE = 'CIFAR-10 pixel', 'CamVid', 'noisy pixel'  # whose best timesteps differ
CONSTANTS = 0, 50, 100, 261  # the cleanest, and what the literature takes: DDPM-seg, REPA's analyses, DIFT
NOT_SCORES = {'setting', 'held_out', 'dense', 'seed', 't', 'log_snr', 'block', 'tap', 'accuracy'}


@dataclass(frozen=True)
class Seen:
    """What a sweep of a setting and seed has seen: ``scores`` by name, (T, taps), ``timesteps``, their ``log_snr``, the ``taps``,
    and whether pixels have labels (``dense``). ``accuracy`` (T, taps) is what judges, and no rule looks at it."""
    setting: str
    held_out: bool
    dense: bool
    seed: int
    timesteps: list
    log_snr: torch.Tensor
    taps: list
    scores: dict
    accuracy: torch.Tensor


def seen_of(rows):
    """One ``Seen`` per setting and seed, from rows in the order of timesteps and taps."""
    parts = {}
    for row in rows:
        parts.setdefault((row['setting'], row['seed']), []).append(row)
    return [_seen(own) for own in parts.values()]


def _seen(rows):
    timesteps = list(dict.fromkeys(row['t'] for row in rows))
    taps = list(dict.fromkeys((row['block'], row['tap']) for row in rows))
    tables = {key: torch.tensor([row[key] for row in rows], dtype=torch.float64).view(len(timesteps), len(taps))
              for key in rows[0] if key not in NOT_SCORES or key in ('log_snr', 'accuracy')}
    return Seen(rows[0]['setting'], bool(rows[0]['held_out']), bool(rows[0]['dense']), rows[0]['seed'], timesteps,
                tables.pop('log_snr')[:, 0], taps, accuracy=tables.pop('accuracy'), scores=tables)


def constant(t, seen):
    """Always the same timestep, or the one next to it."""
    return torch.tensor(min(range(len(seen.timesteps)), key=lambda k: abs(seen.timesteps[k] - t))).expand(len(seen.taps))


def level(log_snr, seen):
    """Always the same noise level, or the one next to it."""
    return (seen.log_snr - log_snr).abs().argmin().expand(len(seen.taps))


def curve(seen, score, judges):
    """A score's curve for each tap, (taps, T): its own, or for all the mean of the taps of some name."""
    values = seen.scores[score]
    if judges is not None:
        values = values[:, [name == judges for _, name in seen.taps]].mean(1, keepdim=True).expand_as(values)
    return values.T


def plateau(score, share, seen, judges='value'):
    """The centre of the score's plateau, as ``sweep`` takes it."""
    return plateau_centre(curve(seen, score, judges), seen.timesteps, share)


def votes(scores, share, seen, judges='value'):
    """The centre of the plateau of several scores' mean, each scaled to [0, 1]."""
    curves = [curve(seen, score, judges) for score in scores]
    low, high = ([getattr(own, kind)(-1, keepdim=True) for own in curves] for kind in ('amin', 'amax'))
    mean = sum((own - a) / (b - a).clamp_min(1e-12) for own, a, b in zip(curves, low, high, strict=True))
    return plateau_centre(mean, seen.timesteps, share)


def by_task(image, dense, seen):
    """One rule for images, another where pixels have labels."""
    return (dense if seen.dense else image)(seen)


# What a user gets without options, and with labels by score='probe'.
DEFAULT = partial(by_task, partial(plateau, 'half_consistency', 0.05), partial(plateau, 'cell_consistency', 0.05))
RULES = {
    'default': DEFAULT,
    'probe': partial(plateau, 'ridge, 0.1, accuracy', 0.05, judges=None),
    'half_consistency, own': partial(plateau, 'half_consistency', 0.2, judges=None),
    'half_consistency': partial(plateau, 'half_consistency', 0.2),
    'half_consistency, 0.05': partial(plateau, 'half_consistency', 0.05),
    'half_consistency, highest': partial(plateau, 'half_consistency', 0),
    'view_consistency': partial(plateau, 'view_consistency', 0.05),
    'cell_consistency': partial(plateau, 'cell_consistency', 0.05),
    'rankme': partial(plateau, 'rankme', 0.05),
    'hfr': partial(plateau, 'hfr', 0),
    'ridge, own': partial(plateau, 'ridge', 0.2, judges=None),
    'ridge, 0.1, accuracy': partial(plateau, 'ridge, 0.1, accuracy', 0.05)}


def regrets(rule, seen):
    """Points that a rule loses for each tap, (taps,)."""
    chosen = rule(seen)
    return seen.accuracy.amax(0) - seen.accuracy[chosen, torch.arange(len(seen.taps))]


def constants(everything):
    """The constants as rules: fixed ones, the best over all settings in hindsight, and for each setting the best on the others;
    each as a timestep and as the noise level that it has on the first setting's clock."""
    first, settings = everything[0], list(dict.fromkeys(own.setting for own in everything))

    def level_of(t):
        return partial(level, first.log_snr[constant(t, first)[0]])

    def loss(rule):
        """Of every setting, the mean regret."""
        return {name: torch.cat([regrets(rule, seen) for seen in everything if seen.setting == name]).mean() for name in settings}
    found = {}
    for kind, make in (('t', lambda t: partial(constant, t)), ('level of t', level_of)):
        found.update({f'{kind}={t}': make(t) for t in CONSTANTS})
        losses = {t: loss(make(t)) for t in first.timesteps}

        def best(among, make=make, losses=losses):
            totals = {t: sum(own[name] for name in among) for t, own in losses.items()}
            return make(min(totals, key=totals.get))
        found[f'best {kind} in hindsight'] = best(settings)
        others = {name: best([other for other in settings if other != name]) for name in settings if len(settings) > 1}
        if others:
            found[f'best {kind} of the other settings'] = lambda seen, others=others: others[seen.setting](seen)
    return found


def judged(rows, rules=None):
    """For each rule and setting, and for all together, the mean and the worst regret over seeds and taps."""
    everything = seen_of(rows)
    rules = {**(RULES if rules is None else rules), **constants(everything)}
    found = []
    for name, rule in rules.items():
        own = {}
        for seen in everything:
            own.setdefault((seen.setting, seen.held_out, seen.dense), []).append(regrets(rule, seen))
        own = {key: torch.cat(values) for key, values in own.items()}
        groups = {'all': own, 'made on': {key: own[key] for key in own if not key[1]}, 'held out': {
            key: own[key] for key in own if key[1]}, 'dense': {key: own[key] for key in own if key[2]}}
        for setting, kept in groups.items():
            if kept:
                found.append(dict(rule=name, setting=setting, held_out={'made on': False, 'held out': True}.get(setting),
                                  mean=torch.stack([values.mean() for values in kept.values()]).mean().item(),
                                  worst=torch.cat(list(kept.values())).max().item()))
        found += [dict(rule=name, setting=setting, held_out=held_out, mean=values.mean().item(), worst=values.max().item())
                  for (setting, held_out, _), values in own.items()]
    return [{key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()} for row in found]


def table(head, lines):
    lines = [head, ['---'] * len(head), *lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def report(rows, rules=None):
    """Tables in Markdown: every rule over groups of settings, and every rule on every setting."""
    found = judged(rows, rules)
    names, settings = ([*dict.fromkeys(row[key] for row in found)] for key in ('rule', 'setting'))
    cells = {(row['rule'], row['setting']): f'{row["mean"]:.2f} ({row["worst"]:.1f})' for row in found}
    groups = [name for name in ('all', 'made on', 'held out', 'dense') if name in settings]
    single = [name for name in settings if name not in groups]
    best = {seen.setting: seen for seen in seen_of(rows)}
    return '\n\n'.join([
        table(['rule', *groups], [[name, *(cells[name, group] for group in groups)] for name in names]),
        table(['rule', *single], [
            ['best accuracy or mIoU', *(f'{best[name].accuracy.max():.1f}' for name in single)],
            ['best timesteps', *(f'{min(ts)} to {max(ts)}' for ts in (
                [own.timesteps[k] for own in seen_of(rows) if own.setting == name for k in own.accuracy.argmax(0).tolist()]
                for name in single))],
            *([name, *(cells[name, setting] for setting in single)] for name in names)])])


def figure(rows, settings, path, rule='default'):
    """A picture of accuracy against the timestep, a panel per setting, with what the rule chooses for each seed."""
    from matplotlib.figure import Figure
    sheet = Figure(figsize=(3.2 * len(settings), 2.8), layout='constrained')
    for axes, setting in zip(sheet.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        own = [seen for seen in seen_of(rows) if seen.setting == setting]
        ts = own[0].timesteps
        mean = torch.stack([seen.accuracy.mean(1) for seen in own]).mean(0)  # (T,)
        axes.plot(ts, mean, marker='.', color='black')
        for seen in own:
            places = RULES[rule](seen)
            place = int(places.median())
            chosen = axes.plot(ts[place], mean[place], 'o', color='tab:red', markersize=9, fillstyle='none')[0]
        fixed = axes.axvline(261, color='tab:blue', linestyle=':')
        axes.set(title=setting, xlabel='timestep t')
    axes.legend([chosen, fixed], ['chosen without labels', 't = 261 (DIFT)'], fontsize='small')
    sheet.axes[0].set_ylabel('accuracy or mIoU of a probe, %')
    sheet.savefig(path, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('rows', nargs='?', type=Path, default=RESULTS / 'selection.csv.gz', help='what selection.py wrote')
    parser.add_argument('--summary', type=Path, help='a JSON file for the mean and worst regret of every rule and setting')
    parser.add_argument('--figure', type=Path, help='a PNG file: accuracy against t for three settings, with the choice')
    args = parser.parse_args(argv)
    head, rows = record.read(args.rows)
    print(report(rows))
    if args.summary:
        record.write(args.summary, head, judged(rows))
    if args.figure:
        figure(rows, FIGURE, args.figure)


if __name__ == '__main__':
    main()
