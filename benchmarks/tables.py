"""The tables of benchmarks/README.md from the rows that benchmarks/selection.py wrote.

    python benchmarks/tables.py                                      # from the rows of this repository
    python benchmarks/tables.py work_dirs/selection.csv.gz --scores half_consistency ridge
"""
import argparse
from itertools import groupby
from pathlib import Path

import record


def report(rows):
    """Tables in Markdown, a column per setting: what the search found and took, and how every score does against it."""
    settings, names = ([*dict.fromkeys(row[key] for row in rows)] for key in ('setting', 'score'))

    def cells(say, joint=None, scores=names):
        """What ``say`` makes of the rows of a setting, for each setting and then for all of them."""
        kept = [row for row in rows if row['score'] in scores
                and (row['block'] is not None if joint is None else row['tap'].startswith(f'{joint}:'))]
        parts = [[row for row in kept if row['setting'] == setting] for setting in settings] + [kept]
        return [say(part) if part else '' for part in parts]

    def table(head, lines):
        lines = [(head, *settings, 'all'), ('---', ) * (2 + len(settings)), *lines]
        return '\n'.join(f'| {" | ".join(line)} |' for line in lines)

    def mean(key, digits=2):
        return lambda own: f'{sum(row[key] for row in own) / len(own):.{digits}f}'

    def worst(key):
        return lambda own: f'{mean(key)(own)} ({max(row[key] for row in own):.1f})'

    def span(key):
        return lambda own: f'{min(row[key] for row in own)} to {max(row[key] for row in own)}'

    def by_score(say, joint=None):
        lines = [(f'`{name}`', *cells(say, joint, [name])) for name in names]
        return [line for line in lines if any(line[1:])]
    found = [('best accuracy or mIoU', *cells(lambda own: f'{max(row["oracle"] for row in own):.1f}')),
             ('oracle timesteps', *cells(span('oracle_t'))), ('seconds of the search', *cells(mean('exhaustive_seconds', 0)))]
    return '\n\n'.join([
        table('exhaustive search', found),
        table('regret in points: mean over taps and seeds (worst)', by_score(worst('regret_points'))),
        table('fair regret', by_score(worst('fair_regret_points'))),
        table('regret of tap and timestep chosen together', by_score(worst('regret_points'), 'joint')),
        table('the same, above random weights', by_score(worst('regret_points'), 'above random')),
        table('rank correlation', by_score(mean('spearman'))),
        table('timesteps chosen', by_score(span('chosen_t'))),
        table('seconds', by_score(mean('seconds', 0)))])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('rows', nargs='?', type=Path, default=record.ROOT / 'benchmarks' / 'results' / 'selection.csv.gz',
                        help='what selection.py wrote (default: the rows of this repository)')
    parser.add_argument('--scores', nargs='+', metavar='SCORE', help='these only (default: all)')
    args = parser.parse_args(argv)
    head, rows = record.read(args.rows)
    kept = [row for row in rows if args.scores is None or row['score'] in args.scores]
    if not kept:
        parser.error(f'no such scores: {args.rows} has {", ".join(dict.fromkeys(row["score"] for row in rows))}')
    print(', '.join(f'{key} {value}' for key, value in head.items()))
    for (plateau, taps), part in groupby(kept, key=lambda row: (row['plateau'], row['score_taps'])):
        print(f'\n## plateau={plateau}, score_taps={taps}\n\n{report(list(part))}')


if __name__ == '__main__':
    main()
