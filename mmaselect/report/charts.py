"""Line charts, drawn by matplotlib as SVG."""
import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

MOST_POINTS = 800  # of a line; more are thinned evenly
MOST_DOTS = 40  # up to here, points are marked
INK, MARK = '#7d8590', '#d8573f'  # both can be read on white and on black


def chart(lines: Mapping[str, Iterable[tuple[float, float]]], *, x_label: str, y_label: str = '', strong: str | None = None,
          marks: Sequence[float] = (), band: tuple[float, float] | None = None, width: int = 520) -> Figure | None:
    """A chart of lines.

    Args:
        lines: Per name its points (x, y), x ascending. Those that are not finite are left out.
        x_label, y_label: Of the axes.
        strong: The line that counts.
        marks: Every x to mark.
        band: A range of x to shade.
        width: Of the chart, in pixels.

    Returns:
        None where there is no point.
    """
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    finite = {name: points[::math.ceil(len(points) / MOST_POINTS)] for name, points in finite.items() if points}
    if not finite:
        return None
    figure = Figure(figsize=(width / 100, 2.8), layout='constrained')
    axes = figure.subplots()
    if band is not None:
        axes.axvspan(*band, color=MARK, alpha=0.12, linewidth=0)
    for x in marks:
        axes.axvline(x, color=MARK, linestyle='--')
    for name, points in finite.items():
        counts = name == strong or len(finite) == 1
        axes.plot(*zip(*points, strict=True), label=name, linewidth=2.5 if counts else 1.2, zorder=3 if counts else 2,
                  marker='o' if len(points) <= MOST_DOTS else None, markersize=4 if counts else 2.5)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.tick_params(colors=INK)
    axes.grid(axis='y', color=INK, alpha=0.2)
    for side, spine in axes.spines.items():
        spine.set_visible(side == 'bottom')
        spine.set_color(INK)
    if len(finite) > 1:
        figure.legend(loc='outside lower center', ncols=4, frameon=False, labelcolor=INK)
    return figure


def data_uri(figure: Figure) -> str:
    """A figure as the SVG, in a text, that stands for it in a page; the same figure gives the same text."""
    buffer = io.BytesIO()
    with rc_context({'svg.hashsalt': 'mmaselect'}):
        figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
    return 'data:image/svg+xml;base64,' + base64.b64encode(buffer.getvalue()).decode()
