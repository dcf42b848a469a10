"""The table of tools/compare_labels.py: from methods to rows, JSON and Markdown."""
import json
import os
import shlex
import statistics
import sys
from pathlib import Path

import compare_agreement
import compare_table

from mmaselect.files import atomic


def rows_of(cfg, methods):
    """A row per number of labels and method; then, where several timesteps of a config were tried, the best in hindsight."""
    data, metric = compare_agreement.data_of(cfg), 'accuracy' if 'head' in cfg.model else 'mIoU'
    rows = []
    for method in methods:
        for labels, values in method.values.items():
            numbers = list(values.values())
            rows.append(dict(
                data=data, labels=labels or 'all', method=method.name, metric=metric, mean=statistics.mean(numbers),
                std=statistics.stdev(numbers) if len(numbers) > 1 else None, seeds=list(values), values=numbers,
                timestep=method.timestep, trained=method.trained, minutes=method.seconds / 60, config=method.config))
    for config in dict.fromkeys(method.config for method in methods if method.timestep and len(method.timestep) == 1):
        for labels in dict.fromkeys(row['labels'] for row in rows):
            tried = [row for row in rows if row['config'] == config and row['labels'] == labels]
            if len(tried) > 1:
                best = max(tried, key=lambda row: row['mean'])
                rows.append(dict(best, method=f'{Path(config).stem}, best of {len(tried)} timesteps in hindsight'))
    return sorted(rows, key=lambda row: (row['labels'] == 'all', row['labels'] if row['labels'] != 'all' else 0))


def markdown(rows):
    """The rows as a table."""
    lines = ['| data | labels | method | metric | result | seeds | timestep | trained | minutes |', '|' + '---|' * 9]
    for row in rows:
        result = f"{row['mean']:.1f}" + ('' if row['std'] is None else f" ± {row['std']:.1f}")
        lines.append('| ' + ' | '.join([
            row['data'], str(row['labels']), row['method'], row['metric'], result, str(len(row['seeds'])),
            '+'.join(map(str, row['timestep'] or [])), '' if row['trained'] is None else f"{row['trained']:,}",
            f"{row['minutes']:.1f}"]) + ' |')
    return '\n'.join(lines) + '\n'


def write(out, cfg, methods, note):
    """Writes ``out`` and its table; rows of other data that it holds stay."""
    rows = rows_of(cfg, methods)
    before = json.loads(out.read_text()) if out.is_file() else {}
    kept = [row for row in before.get('rows', []) if 'labels' in row and row['data'] != rows[0]['data']]
    commands = {**before.get('commands', {}), rows[0]['data']: shlex.join(['python', *sys.argv])}
    rows = sorted([*kept, *rows], key=lambda row: row['data'])
    with atomic(out) as part:
        part.write_text(json.dumps(dict(
            commands=commands, commit=compare_table.commit(), cores=os.cpu_count(), note=note, rows=rows), indent=1) + '\n')
    with atomic(out.with_suffix('.md')) as part:
        part.write_text(markdown(rows))
    return markdown([row for row in rows if row not in kept])
