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
SEEN = 128  # images that a sweep looks at
# Of the picture, with their titles: their best timesteps differ.
FIGURE = {'CIFAR-10 contrast': 'CIFAR-10, DiT of photographs', 'noisy pixel': 'noisy garments, pixel DiT',
          'CamVid': 'CamVid, latent DiT'}
SHOWN = 'default', 'default, labels', 'hfr', 't=0', 't=50', 't=100', 't=261', 'best t in hindsight'  # for every setting
CONSTANTS = 0, 50, 100, 261  # the cleanest, and what the literature takes: DDPM-seg, REPA's analyses, DIFT
TESTS = 'accuracy_1', 'accuracy_2'
NOT_SCORES = {'setting', 'held_out', 'dense', 'seed', 't', 'log_snr', 'block', 'tap', *TESTS}


@dataclass(frozen=True)
class Seen:
    """What a sweep of a setting and seed has seen: ``scores`` by name, (T, taps), ``timesteps``, their ``log_snr``, the ``taps``,
    and whether pixels have labels (``dense``). ``tests`` (2, T, taps), accuracies on two parts of the images, judge, and no rule
    looks at them."""
    setting: str
    held_out: bool
    dense: bool
    seed: int
    timesteps: list
    log_snr: torch.Tensor
    taps: list
    scores: dict
    tests: torch.Tensor

    @property
    def accuracy(self):
        return self.tests.mean(0)


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
              for key in rows[0] if key not in NOT_SCORES or key in ('log_snr', *TESTS)}
    return Seen(rows[0]['setting'], bool(rows[0]['held_out']), bool(rows[0]['dense']), rows[0]['seed'], timesteps,
                tables.pop('log_snr')[:, 0], taps, tests=torch.stack([tables.pop(key) for key in TESTS]), scores=tables)


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


@dataclass(frozen=True)
class Rule:
    """A way to choose: ``choose`` of ``Seen``, and how many forward passes it takes per image and timestep."""
    choose: object
    views: int = 2

    def cost(self):
        """Seconds of a user's sweep to those of the trained probes, by forward passes: 20 candidates, as ``SEEN`` images are
        looked at."""
        head, rows = record.read(RESULTS / 'trained_probes.json')
        row = next(row for row in rows if row['score'] == 'half_consistency')  # two forward passes per image and candidate
        return self.views * SEEN / (2 * row['images']) * row['seconds'] / row['exhaustive_seconds']


def image_or_dense(image, dense, seen):
    """One rule where images have labels, another where pixels have."""
    return (dense if seen.dense else image)(seen)


HALVES, CELLS = (partial(plateau, score, 0.05) for score in ('half_consistency', 'cell_consistency'))
PROBE = partial(plateau, 'ridge, 0.1, accuracy', 0.05)
# 'default' is what a user gets without options, 'default, labels' with score='probe', which is the default again where there are
# too few labels per class for a probe, as in all settings of images here. The rest is what they are held against.
RULES = {
    'default': Rule(partial(image_or_dense, HALVES, CELLS)),
    'default, labels': Rule(partial(image_or_dense, HALVES, PROBE)),
    'half_consistency': Rule(HALVES),
    'half_consistency, plateau 0.2': Rule(partial(plateau, 'half_consistency', 0.2)),
    'half_consistency, highest': Rule(partial(plateau, 'half_consistency', 0)),
    'half_consistency, own, plateau 0.2': Rule(partial(plateau, 'half_consistency', 0.2, judges=None)),
    'view_consistency': Rule(partial(plateau, 'view_consistency', 0.05)),
    'cell_consistency': Rule(CELLS),
    'rankme': Rule(partial(plateau, 'rankme', 0.05), 1),
    'hfr': Rule(partial(plateau, 'hfr', 0), 1),
    'half, view and cell vote': Rule(partial(votes, ('half_consistency', 'view_consistency', 'cell_consistency'), 0.05)),
    'half_consistency and rankme vote': Rule(partial(votes, ('half_consistency', 'rankme'), 0.05)),
    'probe, own taps': Rule(partial(plateau, 'ridge, 0.1, accuracy', 0.05, judges=None), 1),
    'ridge, own, plateau 0.2': Rule(partial(plateau, 'ridge', 0.2, judges=None), 1),
    'probe': Rule(PROBE, 1)}


def regrets(rule, seen):
    """Points that a rule loses for each tap, (taps,)."""
    chosen = rule.choose(seen)
    return seen.accuracy.amax(0) - seen.accuracy[chosen, torch.arange(len(seen.taps))]


def fair_regrets(rule, seen):
    """The same, where the best timestep is the best on one part of the images and is held against the choice on the other. The
    best of many accuracies on the same images is partly luck. Can be negative."""
    taps = torch.arange(len(seen.taps))
    bests = [seen.tests[1 - part, seen.tests[part].argmax(0), taps] for part in (0, 1)]
    return torch.stack(bests).mean(0) - seen.accuracy[rule.choose(seen), taps]


def constants(everything):
    """The constants as rules: fixed ones, the best over all settings in hindsight, and for each setting the best on the others;
    each as a timestep and as the noise level that it has on the first setting's clock."""
    first, settings = everything[0], list(dict.fromkeys(own.setting for own in everything))

    def level_of(t):
        return Rule(partial(level, first.log_snr[constant(t, first)[0]]), 0)

    def loss(rule):
        """Of every setting, the mean regret."""
        return {name: torch.cat([regrets(rule, seen) for seen in everything if seen.setting == name]).mean() for name in settings}
    found = {}
    for kind, make in (('t', lambda t: Rule(partial(constant, t), 0)), ('level of t', level_of)):
        found.update({f'{kind}={t}': make(t) for t in CONSTANTS})
        losses = {t: loss(make(t)) for t in first.timesteps}

        def best(among, make=make, losses=losses):
            totals = {t: sum(own[name] for name in among) for t, own in losses.items()}
            return make(min(totals, key=totals.get))
        found[f'best {kind} in hindsight'] = best(settings)
        others = {name: best([other for other in settings if other != name]) for name in settings if len(settings) > 1}
        if others:
            found[f'best {kind} of the other settings'] = Rule(
                lambda seen, others=others: others[seen.setting].choose(seen), 0)
    return found


def judged(rows, rules=None):
    """For each rule and setting, and for groups of settings, which weigh the same, the mean regret over seeds and taps, the fair
    one, and the worst."""
    everything, found = seen_of(rows), []
    for name, rule in {**(RULES if rules is None else rules), **constants(everything)}.items():
        own = {}
        for seen in everything:
            own.setdefault((seen.setting, seen.held_out, seen.dense), []).append((regrets(rule, seen), fair_regrets(rule, seen)))
        own = {key: [torch.cat(values) for values in zip(*parts, strict=True)] for key, parts in own.items()}
        groups = {'all': (None, list(own)), 'made on': (False, [key for key in own if not key[1]]),
                  'held out': (True, [key for key in own if key[1]]), 'dense': (None, [key for key in own if key[2]])}
        groups.update({key[0]: (key[1], [key]) for key in own})
        for setting, (held_out, kept) in groups.items():
            if kept:
                mean, fair = (torch.stack([own[key][kind].mean() for key in kept]).mean().item() for kind in (0, 1))
                worst = max(own[key][0].max().item() for key in kept)
                found.append(dict(rule=name, setting=setting, held_out=held_out, mean=round(mean, 3), fair_mean=round(fair, 3),
                                  worst=round(worst, 2), cost_of_trained_probes=round(rule.cost(), 5)))
    return found


def table(head, lines):
    lines = [head, ['---'] * len(head), *lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def report(rows, rules=None):
    """Tables in Markdown: every rule over groups of settings, and every rule on every setting."""
    found = judged(rows, rules)
    names, settings = ([*dict.fromkeys(row[key] for row in found)] for key in ('rule', 'setting'))
    cells = {(row['rule'], row['setting']): f'{row["mean"]:.2f} ({row["worst"]:.1f})' for row in found}
    fair = {row['rule']: f'{row["fair_mean"]:.2f}' for row in found if row['setting'] == 'all'}
    costs = {row['rule']: row['cost_of_trained_probes'] for row in found}
    groups = [name for name in ('all', 'made on', 'held out', 'dense') if name in settings]
    single = [name for name in settings if name not in groups]
    everything = seen_of(rows)

    def found_of(name):
        """The best accuracy of a setting, and between which timesteps the taps have their best."""
        own = [seen for seen in everything if seen.setting == name]
        ts = [seen.timesteps[k] for seen in own for k in seen.accuracy.argmax(0).tolist()]
        return f'{max(seen.accuracy.max() for seen in own):.1f}', f'{min(ts)} to {max(ts)}'
    shown = [name for name in names if name in SHOWN]
    return '\n\n'.join([
        table(['rule', *groups, 'fair, all', 'cost'], [
            [name, *(cells[name, group] for group in groups), fair[name], f'1/{1 / costs[name]:.0f}' if costs[name] else '0']
            for name in names]),
        table(['setting', 'best accuracy or mIoU', 'best timesteps', *shown], [
            [name, *found_of(name), *(cells[rule, name] for rule in shown)] for name in single])])


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
            places = RULES[rule].choose(seen)
            place = int(places.median())
            chosen = axes.plot(ts[place], mean[place], 'o', color='tab:red', markersize=9, fillstyle='none')[0]
        fixed = axes.axvline(261, color='tab:blue', linestyle=':')
        axes.set(title=FIGURE.get(setting, setting), xlabel='timestep t')
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
        measured = {row['setting'] for row in rows}
        figure(rows, [name for name in FIGURE if name in measured] or sorted(measured)[:3], args.figure)


if __name__ == '__main__':
    main()
