"""The tables of tools/compare.py and tools/compare_labels.py: from results to JSON, Markdown and a bar chart."""
import json
import os
import shlex
import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from mmaselect.environment import commit
from mmaselect.files import atomic

NOTE = """Result: mean ± standard deviation over the seeds. FLOPs: multiply-adds of predicting one test image; ms per image: the
median time of that. Memory: the most that training took, on the GPU or, without one, of the process. Training: with its
validations and the choice of the timestep."""


def moments(values):
    """Mean and standard deviation of the seeds' results; None where there are too few."""
    return dict(mean=statistics.mean(values) if values else None, std=statistics.stdev(values) if len(values) > 1 else None)


def number(value, form, unit=1):
    return 'not measured' if value is None else format(value / unit, form)


def result(row, form):
    """The mean of a row and, of several seeds, the deviation."""
    return number(row['mean'], form) + ('' if row['std'] is None else f" ± {row['std']:{form}}")


def markdown(lines):
    """A table of dicts with the same keys, whose columns line up in plain text too."""
    widths = {key: max(len(key), *(len(line[key]) for line in lines)) for key in lines[0]}

    def row(values):
        return '| ' + ' | '.join(value.ljust(width) for value, width in zip(values, widths.values(), strict=True)) + ' |\n'

    return ''.join([row(widths), row('-' * width for width in widths.values()), *(row(line.values()) for line in lines)])


def write(out, text, **found):
    """Writes what was ``found`` as JSON, with commit and cores, and beside it the text as .md."""
    with atomic(out) as part:
        part.write_text(json.dumps(dict(commit=commit(), cores=os.cpu_count(), **found), indent=1) + '\n')
    with atomic(out.with_suffix('.md')) as part:
        part.write_text(text)


def command():
    return shlex.join(['python', *sys.argv])


# tools/compare.py


def value_of(run, metrics):
    """The figure that a finished run is compared by, as (name, value): the first of these metrics that it was tested by.

    Raises:
        ValueError: It was tested by none of them.
    """
    found = run.record['metrics']
    for name in metrics:
        if name in found:
            return name, found[name]
    raise ValueError(f'{run.name} was tested by {", ".join(found)}: choose one of them with --metrics')


def summary(runs, metrics):
    """One row: what all seeds of a config give together. Figures that no finished run has are None."""
    done = [run for run in runs if 'cost' in run.record]
    named = [value_of(run, metrics) for run in done]
    values, costs = [value for _, value in named], [run.record['cost'] for run in done]
    row = dict(config=runs[0].name, data=runs[0].data, seeds=[run.seed for run in done], values=values,
               timesteps=[cost['timestep'] for cost in costs], metric=named[0][0] if done else None, **moments(values))
    if not done:
        return dict(row, **dict.fromkeys(('parameters', 'trained', 'flops', 'milliseconds', 'megabytes', 'minutes')))
    return dict(
        row, **{key: costs[0][key] for key in ('parameters', 'trained', 'flops')},
        milliseconds=statistics.median(cost['milliseconds'] for cost in costs),
        megabytes=max(run.record['memory'] for run in done),
        minutes=statistics.mean(run.record['seconds'] for run in done) / 60)


def cells(row):
    """The row as text."""
    steps = ['+'.join(map(str, step)) if isinstance(step, list) else str(step) for step in row['timesteps'] if step is not None]
    return {
        'config': row['config'], 'data': row['data'], 'metric': row['metric'] or '', 'result': result(row, '.2f'),
        'seeds': ' '.join(map(str, row['seeds'])), 'parameters, M': number(row['parameters'], '.2f', 1e6),
        'trained, M': number(row['trained'], '.2f', 1e6), 'FLOPs, G': number(row['flops'], '.3f', 1e9),
        'ms per image': number(row['milliseconds'], '.1f'), 'memory, MB': number(row['megabytes'], '.0f'),
        'training, min': number(row['minutes'], '.1f'), 'timestep': ', '.join(steps if len(set(steps)) > 1 else steps[:1])}


def chart(rows, path):
    """Horizontal bars of the results with their standard deviations, a panel for each kind of data."""
    data = list(dict.fromkeys(row['data'] for row in rows))
    panels = [[row for row in rows if row['data'] == name and row['mean'] is not None] for name in data]
    figure = Figure(figsize=(8, 1 + sum(0.6 + 0.4 * len(panel) for panel in panels)), layout='constrained')
    ratios = [1.5 + len(panel) for panel in panels]
    for axis, name, panel in zip(figure.subplots(len(data), 1, squeeze=False, height_ratios=ratios)[:, 0], data, panels,
                                 strict=True):
        bars = axis.barh([row['config'] for row in panel], [row['mean'] for row in panel],
                         xerr=[row['std'] or 0 for row in panel], capsize=3)
        axis.bar_label(bars, fmt='%.1f', padding=6)
        axis.margins(x=0.12)
        axis.invert_yaxis()
        axis.set(title=name, xlabel=panel[0]['metric'] if panel else 'not measured')
    with atomic(path) as part:
        figure.savefig(part, dpi=120)


def write_runs(out, runs, metrics, warnings, failures):
    """Writes ``out`` (JSON) and, beside it, the same as .md and .png. The Markdown is returned."""
    rows = [summary([run for run in runs if run.name == name], metrics) for name in dict.fromkeys(run.name for run in runs)]
    remarks = [f'- {kind}: {text}' for kind, texts in (('warning', warnings), ('failed', failures)) for text in texts]
    table = '\n'.join([markdown([cells(row) for row in rows]), NOTE, '', *remarks]).rstrip() + '\n'
    records = [dict(config=run.config, seed=run.seed, **run.record) for run in runs]
    write(out, table, command=command(), rows=rows, warnings=warnings, failures=failures, runs=records)
    chart(rows, out.with_suffix('.png'))
    return table


# tools/compare_labels.py


def rows_of(data, metric, methods):
    """A row per number of labels and method; then, where several timesteps of a config were tried, the best in hindsight."""
    rows = [dict(data=data, labels=labels or 'all', method=method.name, metric=metric, **moments(list(values.values())),
                 seeds=list(values), values=list(values.values()), timestep=method.timestep, trained=method.trained,
                 minutes=method.seconds / 60, config=method.config)
            for method in methods for labels, values in method.values.items()]
    for config in dict.fromkeys(method.config for method in methods if method.timestep and len(method.timestep) == 1):
        for labels in dict.fromkeys(row['labels'] for row in rows):
            tried = [row for row in rows if row['config'] == config and row['labels'] == labels]
            if len(tried) > 1:
                best = max(tried, key=lambda row: row['mean'])
                rows.append(dict(best, method=f'{Path(config).stem}, best of {len(tried)} timesteps in hindsight'))
    return sorted(rows, key=lambda row: (row['labels'] == 'all', row['labels'] if row['labels'] != 'all' else 0))


def labels_table(rows):
    return markdown([{
        **{key: str(row[key]) for key in ('data', 'labels', 'method', 'metric')}, 'result': result(row, '.1f'),
        'seeds': str(len(row['seeds'])), 'timestep': '+'.join(map(str, row['timestep'] or [])),
        'trained': '' if row['trained'] is None else f"{row['trained']:,}", 'minutes': f"{row['minutes']:.1f}"} for row in rows])


def write_labels(out, data, metric, methods, note):
    """Writes ``out`` and its table; rows of other data that it holds stay. The Markdown of the new ones is returned."""
    rows = rows_of(data, metric, methods)
    before = json.loads(out.read_text()) if out.is_file() else {}
    kept = [row for row in before.get('rows', []) if 'labels' in row and row['data'] != data]
    every = sorted([*kept, *rows], key=lambda row: row['data'])
    write(out, labels_table(every), commands={**before.get('commands', {}), data: command()}, note=note, rows=every)
    return labels_table(rows)
