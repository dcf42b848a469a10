"""Line charts as the numbers of an SVG; the page's template draws them, so that they follow its colours."""
import math

from matplotlib.ticker import MaxNLocator

HEIGHT = 280
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 22, 42
MOST_POINTS = 800  # of a line; more are thinned evenly
MOST_DOTS = 40  # up to here, points are marked


def ticks(low, high, count):
    """Round numbers that cover [low, high]."""
    return [float(tick) for tick in MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def chart(lines, *, x_label, y_label='', strong=None, marks=(), band=None, width=520):
    """A chart of lines.

    Args:
        lines (dict[str, Sequence[tuple[float, float]]]): Per name its points (x, y), x ascending. Those that are not finite are
            left out.
        x_label, y_label (str): Of the axes.
        strong (str | None): The line that counts.
        marks (Sequence[float]): Every x to mark.
        band (tuple[float, float] | None): A range of x to shade.
        width (int): Of the chart, in units of the SVG.

    Returns:
        dict | None: What the template's macro ``chart`` draws; None where there is no point.
    """
    lines = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    lines = {name: points[::math.ceil(len(points) / MOST_POINTS)] for name, points in lines.items() if points}
    if not lines:
        return None
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    y_ticks = ticks(min(ys), max(ys), 5)
    y_low, y_high = (y_ticks[0], y_ticks[-1]) if y_ticks[0] < y_ticks[-1] else (y_ticks[0] - 1, y_ticks[0] + 1)

    def right(x):
        return round(LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT), 1)

    def down(y):
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    return dict(
        width=width, height=HEIGHT, left=LEFT, right=width - RIGHT, top=TOP, bottom=HEIGHT - BOTTOM, x_label=x_label,
        y_label=y_label, x_ticks=[(right(x), f'{x:g}') for x in ticks(x_low, x_high, 7) if x_low <= x <= x_high],
        y_ticks=[(down(y), f'{y:g}') for y in y_ticks],
        marks=[right(x) for x in marks], band=None if band is None else (right(band[0]), right(band[1])),
        lines=[dict(name=name, colour=k % 8, strong=name == strong or len(lines) == 1,
                    path=' '.join(f'{right(x)},{down(y)}' for x, y in points),
                    dots=[(right(x), down(y), f'{name}: {y:.4g} at {x:g}') for x, y in points if len(points) <= MOST_DOTS])
               for k, (name, points) in enumerate(lines.items())])
