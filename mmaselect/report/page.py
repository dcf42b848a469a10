"""A Run as one page of HTML that needs no other file."""
import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from mmaselect.selection import SelectionResult
from mmaselect.selection.result import tap_name
from mmaselect.version import __version__

from . import charts
from .charts import chart
from .run import Run, nodes

MOST_PIXELS = 2400  # of a picture's longer side; larger ones are made smaller
MOST_TAPS = 8  # with lines and columns of their own
VERSIONS = ('Python', 'PyTorch', 'TorchVision', 'MMEngine', 'OpenCV', 'CUDA available', 'GPU 0', 'seed', 'deterministic',
            'Distributed launcher', 'GPU number')


def data_uri(path: Path) -> str:
    """A picture file as the text that stands for it in a page.

    Raises:
        ValueError: It is not a whole picture.
    """
    try:
        with Image.open(path) as picture:
            picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
            buffer = io.BytesIO()
            picture.save(buffer, 'PNG')
    except (OSError, SyntaxError) as error:  # Pillow's for a damaged PNG is a SyntaxError
        raise ValueError(f'{path} is not a whole picture ({error})') from error
    return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()


def render(run: Run, *, pictures: int = 12) -> str:
    """The page.

    Args:
        run: What to show.
        pictures: At most so many predictions.

    Returns:
        HTML, with pictures, style and script inside.
    """
    notes = list(run.notes)

    def embedded(paths: list[Path]) -> list[tuple[str, str]]:
        found = []
        for path in paths:
            try:
                found.append((path.stem, data_uri(path)))
            except ValueError as error:
                notes.append(str(error))
        return found

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(number=number, score=score, duration=duration, svg=charts.data_uri)
    template = environment.from_string(Path(__file__).with_name('page.html').read_text())
    shown = dict(predictions=embedded(run.predictions[:pictures]), maps=embedded(run.maps))
    return template.render(run=run, name=run.folder.resolve().name, notes=notes, version=__version__, glance=glance(run),
                           selection_chart=selection_chart(run.selection), taps=shown_taps(run.selection), tap_name=tap_name,
                           charts=training_charts(run), metrics=metrics(run), commands=commands(run),
                           versions={key: run.environment[key] for key in VERSIONS if key in run.environment}, **shown)


def number(value: float) -> str:
    """Four digits, or the sign of infinity."""
    if not math.isfinite(value):
        return 'not a number' if math.isnan(value) else '∞' if value > 0 else '−∞'
    return f'{value:.4g}'.replace('-', '−')


def score(value: float) -> str:
    """Four places behind the point, as scores are compared with each other."""
    return f'{value:.4f}'.replace('-', '−')


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


def glance(run: Run) -> list[tuple[str, Any]]:
    """The settings that a reader looks for first, as pairs of name and text."""
    config = run.config
    model = config.get('model') or {}
    backbone = next((node for node in nodes(model) if str(node.get('type')).endswith('DiTBackbone')), {})
    head: dict = next((model[key] for key in ('decode_head', 'head') if isinstance(model.get(key), dict)), {})
    loader = config.get('train_dataloader') or {}
    dataset = loader.get('dataset') or {}
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    pairs = {
        'model': model.get('type'),
        'DiT': backbone and (backbone.get('pretrained') or 'random weights'),
        'taps': ', '.join(tap_name(tap) for tap in backbone.get('taps') or ()),
        'DiT is': backbone and ('frozen' if backbone.get('frozen', True) else 'trained'),
        'head': head.get('type'),
        'data': ' in '.join(str(dataset[key]) for key in ('type', 'data_root') if dataset.get(key)),
        'images per batch': loader.get('batch_size'),
        'optimizer': optimizer and f"{optimizer.get('type')}, learning rate {optimizer.get('lr')}",
        'schedule': run.total and f'{run.total} {run.unit}s',
        'seed': (config.get('randomness') or {}).get('seed'),
    }
    return [(name, text) for name, text in pairs.items() if text not in (None, '', {})]


def shown_taps(selection: SelectionResult | None) -> Sequence[int]:
    """Places of the taps that get a line and a column of their own."""
    return range(len(selection.taps)) if selection and 1 < len(selection.taps) <= MOST_TAPS else ()


def selection_chart(selection: SelectionResult | None) -> Figure | None:
    """The score over the timesteps."""
    if selection is None:
        return None
    whole = tap_name(selection.tap or selection.taps[0]) if selection.tap or len(selection.taps) == 1 else 'mean'
    lines = {whole: [(c.timestep, c.score) for c in selection.candidates]}
    for k in shown_taps(selection):
        lines[tap_name(selection.taps[k])] = [(c.timestep, c.tap_scores[k]) for c in selection.candidates]
    return chart(lines, x_label='timestep t (0 is the cleanest)', y_label=selection.score['type'], strong=whole,
                 marks=selection.timesteps, band=selection.interval, width=960)


def training_charts(run: Run) -> list[tuple[str, Figure]]:
    """Pairs of title and chart: losses, accuracies and learning rates of the training, and the evaluations."""
    groups = {'loss': 'loss', 'training accuracy': 'acc', 'learning rate': 'lr'}  # title -> what the names contain
    lines = [(title, {name: points for name, points in run.train.items() if word in name}) for title, word in groups.items()]
    drawn = [(title, chart(group, x_label='iteration', strong='loss')) for title, group in lines]
    several = {name: points for name, points in run.val.items() if len(points) > 1}
    return [(title, c) for title, c in (*drawn, ('evaluation', chart(several, x_label=run.unit))) if c]


def metrics(run: Run) -> list[dict[str, Any]]:
    """Per metric its name, last and best value, the step of the best, and what the last test gave."""
    rows = []
    for name in dict.fromkeys((*run.val, *run.test)):
        points = run.val.get(name, [])
        lower = any(word in name.lower() for word in ('loss', 'error', 'mae', 'mse'))
        best = (min if lower else max)(points, key=lambda p: p[1], default=None)
        rows.append(dict(name=name, last=points[-1][1] if points else None, best=best, test=run.test.get(name)))
    return rows


def commands(run: Run) -> list[str]:
    """Commands that make the run again, from the config as it was after all options."""
    if run.config_file is None:
        return []
    config, folder = quote(str(run.config_file)), quote(f'{run.folder}_again')
    if not run.train:
        return [f'python tools/select_timestep.py {config} --work-dir {folder}']
    found = [f'python tools/train.py {config} --work-dir {folder}']
    if run.checkpoint:
        found.append(f'python tools/test.py {config} {quote(str(run.checkpoint))}')
    return found
