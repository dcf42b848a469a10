"""The table of tools/compare.py: from the records of runs to Markdown, JSON and a bar chart."""
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from matplotlib.figure import Figure

from mmaselect.files import atomic

NOTE = """Result: mean ± standard deviation over the seeds. FLOPs: multiply-adds of predicting one test image; ms per image: the
median time of that. Memory: the most that training took, on the GPU or, without one, of the process. Training: with its
validations and the choice of the timestep."""


def commit():
    """The commit of this repository, '' outside of one."""
    return subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=Path(__file__).parent, capture_output=True,
                          text=True, check=False).stdout.strip()


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
    row = dict.fromkeys(('metric', 'mean', 'std', 'parameters', 'trained', 'flops', 'milliseconds', 'megabytes', 'minutes'))
    row = dict(config=runs[0].name, data=runs[0].data, seeds=[run.seed for run in done], values=[], timesteps=[], **row)
    if not done:
        return row
    named = [value_of(run, metrics) for run in done]
    values, costs = [value for _, value in named], [run.record['cost'] for run in done]
    row.update(
        metric=named[0][0], values=values, mean=statistics.mean(values),
        std=statistics.stdev(values) if len(values) > 1 else None,
        **{key: costs[0][key] for key in ('parameters', 'trained', 'flops')},
        milliseconds=statistics.median(cost['milliseconds'] for cost in costs),
        megabytes=max(run.record['memory'] for run in done),
        minutes=statistics.mean(run.record['seconds'] for run in done) / 60,
        timesteps=[cost['timestep'] for cost in costs])
    return row


def cells(row):
    """The row as text."""
    def number(key, unit, form):
        return 'not measured' if row[key] is None else format(row[key] / unit, form)

    result = number('mean', 1, '.2f') if row['std'] is None else f"{row['mean']:.2f} ± {row['std']:.2f}"
    steps = ['+'.join(map(str, step)) if isinstance(step, list) else str(step) for step in row['timesteps'] if step is not None]
    return dict(
        config=row['config'], data=row['data'], metric=row['metric'] or '', result=result,
        seeds=' '.join(map(str, row['seeds'])),
        **{'parameters, M': number('parameters', 1e6, '.2f'), 'trained, M': number('trained', 1e6, '.2f'),
           'FLOPs, G': number('flops', 1e9, '.3f'), 'ms per image': number('milliseconds', 1, '.1f'),
           'memory, MB': number('megabytes', 1, '.0f'), 'training, min': number('minutes', 1, '.1f'),
           'timestep': ', '.join(steps if len(set(steps)) > 1 else steps[:1])})


def markdown(rows, warnings, failures):
    """A table whose columns line up in plain text too."""
    lines = [cells(row) for row in rows]
    widths = {key: max(len(key), *(len(line[key]) for line in lines)) for key in lines[0]}

    def row(values):
        return '| ' + ' | '.join(value.ljust(width) for value, width in zip(values, widths.values(), strict=True)) + ' |'

    table = '\n'.join([row(widths), row('-' * width for width in widths.values()), *(row(line.values()) for line in lines)])
    remarks = [f'- {kind}: {text}' for kind, texts in (('warning', warnings), ('failed', failures)) for text in texts]
    return '\n'.join([table, '', NOTE, '', *remarks]).rstrip() + '\n'


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


def write(out, runs, metrics, warnings, failures):
    """Writes ``out`` (JSON) and, beside it, the same as .md and .png. The Markdown is returned."""
    rows = [summary([run for run in runs if run.name == name], metrics) for name in dict.fromkeys(run.name for run in runs)]
    table = markdown(rows, warnings, failures)
    records = [dict(config=run.config, seed=run.seed, **run.record) for run in runs]
    with atomic(out) as part:
        part.write_text(json.dumps(dict(
            command=shlex.join(['python', *sys.argv]), commit=commit(), cores=os.cpu_count(), rows=rows, warnings=warnings,
            failures=failures, runs=records), indent=1) + '\n')
    with atomic(out.with_suffix('.md')) as part:
        part.write_text(table)
    chart(rows, out.with_suffix('.png'))
    return table
