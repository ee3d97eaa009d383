"""Charts of the reports as inline SVG: lines, bars and shares, with axes, units and values under the pointer.

Everything is drawn by the style sheet of `html_page`, so that charts follow light and dark. What the pointer
shows is CSS alone; a folded table below each line chart holds the same values for keyboards and readers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from schemas.html_page import Html, folded, markup, table
from schemas.html_style import NUM_SERIES_COLOURS

WIDTH, HEIGHT = 560, 264
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 38, 50
MAX_POINTS = 600
"""Points drawn of a line; more than the pixels of a chart show nothing."""
DIGIT_WIDTH = 12.0
"""Of the largest text of a chart, that of phones; so much room labels are given everywhere."""
MAX_VALUES = 120
"""Places with values under the pointer, and rows of the table."""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    """Number of the colour in the style sheet, modulo 8; a ninth series has the first one again."""
    is_dashed: bool = False
    has_dots: bool = False
    """Each point is shown; a line of one point always has its dot."""
    is_in_legend: bool = True
    smoothing: float = 0.0
    """Share of the past in the running mean that is drawn over the raw values; 0 for none."""
    note: str = ""
    """Behind the name in the legend."""


@dataclass(frozen=True)
class _Axes:
    """From values to places."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.low_x) / (self.high_x - self.low_x)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low_y) / (self.high_y - self.low_y)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
) -> Html:
    """Lines over a common x axis, each with at least one point.

    Args:
        title: of the figure.
        series: the lines.
        x_label: what x counts.
        y_label: what y is, with its unit.
        y_range: ends of the y axis; by default those of the values.
    """
    xs = [value for line in series for value in line.x]
    ys = [value for line in series for value in line.y]
    y_ticks = ticks(*(y_range or (min(ys), max(ys))))
    first, last = min(xs), max(xs)
    axes = _Axes(first, last if last > first else first + 1, y_ticks[0], y_ticks[-1])
    x_ticks = _x_ticks(axes, is_whole=all(float(value).is_integer() for value in xs))
    parts = [_frame(axes, y_ticks, x_ticks, x_label, y_label)]
    parts += [_line(axes, line) for line in series]
    parts.append(_values_under_pointer(axes, series, x_label))
    legend = _legend(series) if len(series) > 1 or series[0].note else ""
    summary = f"{title}: {x_label} {number_text(first)} to {number_text(last)}"
    return _figure(title, legend, "".join(parts), summary, _value_table(series, x_label))


def bar_chart(
    title: str,
    values: Sequence[float],
    names: Sequence[str],
    *,
    x_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> Html:
    """Bars side by side; ``names`` say what each is (shown under the pointer), ticks stand at bar edges."""
    y_ticks = ticks(0, max(max(values), 1e-9))
    axes = _Axes(0, len(values), 0, y_ticks[-1])
    gap = 1.0 if axes.x(1) - axes.x(0) > 4 else 0.0
    bars = "".join(
        f'<rect x="{axes.x(index):.1f}" y="{axes.y(value):.1f}" width="{axes.x(1) - axes.x(0) - gap:.2f}"'
        f' height="{max(axes.y(0) - axes.y(value), 1):.1f}" style="fill:var(--s0)">'
        f"<title>{escape(name)}: {number_text(value)}</title></rect>"
        for index, (value, name) in enumerate(zip(values, names, strict=True))
        if value
    )
    largest = max(range(len(values)), key=lambda index: values[index])
    summary = f"{title}; largest {number_text(values[largest])} at {names[largest]}"
    return _figure(title, "", _frame(axes, y_ticks, x_ticks, x_label, y_label) + bars, summary)


def share_chart(title: str, shares: Sequence[tuple[str, float, float]]) -> Html:
    """Shares of a whole as horizontal bars: (name, share, share wanted), the last as a mark."""
    parts, row, width = [], 34, WIDTH - 330
    largest = max([0.01, *(max(share, wanted) for _, share, wanted in shares)])
    for index, (name, share, wanted) in enumerate(shares):
        top, colour = 6 + row * index, index % NUM_SERIES_COLOURS
        mark = 150 + width * wanted / largest
        parts.append(
            f'<text class="name" x="142" y="{top + 15}" text-anchor="end">{escape(_shortened(name))}</text>'
            f'<rect x="150" y="{top}" width="{width * share / largest:.1f}" height="21" rx="2"'
            f' style="fill:var(--s{colour})"><title>{escape(name)}: {share:.2%}</title></rect>'
            f'<line class="mark" x1="{mark:.1f}" x2="{mark:.1f}" y1="{top - 4}" y2="{top + 25}"/>'
            f'<text x="{150 + width + 12}" y="{top + 15}">{share:.2%} / {wanted:.2%}</text>'
        )
    return _figure(
        title,
        _note("bar: share reached / mark: weight"),
        "".join(parts),
        title,
        height=12 + row * len(shares),
    )


def ticks(low: float, high: float, number: int = 5, is_whole: bool = False) -> list[float]:
    """Round values from at or below ``low`` to at or above ``high``, about ``number`` of them.

    Args:
        low: of the values.
        high: of the values.
        number: wanted.
        is_whole: what is counted has no fractions, so the ticks have none.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        high = low + (abs(low) * 0.1 or 1.0)
    rough = max((high - low) / number, 1.0 if is_whole else 0.0)
    scale = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * scale for factor in (1, 2, 2.5, 5, 10)]
    step = next(s for s in steps if s >= rough * 0.999 and (s.is_integer() or not is_whole))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def number_text(value: float, step: float = 0.0) -> str:
    """A number for people; with ``step``, as exact as ticks that far apart need."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:,.4g}M"
    if size and max(size, step) < 1e-3:
        return f"{value:.3g}"
    if not step:
        return f"{value:,.0f}" if size >= 1000 or value == int(value) else f"{value:,.4g}"
    digits = max(0, -math.floor(math.log10(step)))
    return f"{value:,.{digits + (round(step * 10**digits, 9) % 1 > 0)}f}"


def smoothed(values: Sequence[float], smoothing: float) -> list[float]:
    """Running mean that gives the past the weight ``smoothing``."""
    mean, result = values[0], []
    for value in values:
        mean = smoothing * mean + (1 - smoothing) * value
        result.append(mean)
    return result


def _x_ticks(axes: _Axes, is_whole: bool) -> list[tuple[float, str]]:
    """Ticks within the axis and their labels, as many as have room side by side."""
    found: list[tuple[float, str]] = []
    for number in (5, 4, 3, 2):
        values = ticks(axes.low_x, axes.high_x, number, is_whole)
        step = values[1] - values[0]
        found = [(x, number_text(x, step)) for x in values if axes.low_x <= x <= axes.high_x]
        # One and a half: the outer labels end or begin at their ticks, the others stand around them.
        room = 1.5 * DIGIT_WIDTH * max((len(text) for _, text in found), default=0)
        if axes.x(axes.low_x + step) - LEFT >= room:
            break
    return found


def _frame(
    axes: _Axes,
    y_ticks: Sequence[float],
    x_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<text x="4" y="16">{escape(y_label)}</text>']
    step = y_ticks[1] - y_ticks[0]
    for tick in y_ticks:
        y = axes.y(tick)
        kind = "axis" if tick == y_ticks[0] else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number_text(tick, step)}</text>'
        )
    for tick, text in x_ticks:
        x = axes.x(tick)
        half = DIGIT_WIDTH * len(text) / 2
        # Left of the axis stands the lowest label of y.
        anchor = "start" if x - half < LEFT - 4 else "end" if x + half > WIDTH else "middle"
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="{anchor}">{escape(text)}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _line(axes: _Axes, series: Series) -> str:
    stroke = f'style="stroke:var(--s{series.colour % NUM_SERIES_COLOURS})"'
    kind = ' class="dashed"' if series.is_dashed else ""
    dots = ""
    if len(series.x) == 1 or series.has_dots:
        dots = "".join(
            f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3.2"'
            f' style="fill:var(--s{series.colour % NUM_SERIES_COLOURS})"/>'
            for x, y in zip(series.x, series.y, strict=True)
        )
    raw = _polyline(axes, series.x, series.y, f"{kind} {stroke}")
    if not series.smoothing:
        return raw + dots
    raw = _polyline(axes, series.x, series.y, f'class="faint" {stroke}')
    return raw + _polyline(axes, series.x, smoothed(series.y, series.smoothing), stroke)


def _polyline(axes: _Axes, xs: Sequence[float], ys: Sequence[float], attributes: str) -> str:
    points = " ".join(f"{axes.x(xs[i]):.1f},{axes.y(ys[i]):.1f}" for i in spread(len(xs), MAX_POINTS))
    return f'<polyline {attributes} points="{points}"/>'


def spread(number: int, most: int) -> list[int]:
    """At most ``most`` indices below ``number``, evenly spread, the first and the last among them."""
    if number <= most:
        return list(range(number))
    return [round(index * (number - 1) / (most - 1)) for index in range(most)]


def _places(series: Sequence[Series]) -> list[tuple[float, list[tuple[Series, float]]]]:
    """(x, what each line has there), evenly spread."""
    found: dict[float, list[tuple[Series, float]]] = {}
    for line in series:
        for x, y in zip(line.x, line.y, strict=True):
            found.setdefault(x, []).append((line, y))
    places = sorted(found.items())
    return [places[index] for index in spread(len(places), MAX_VALUES)]


def _values_under_pointer(axes: _Axes, series: Sequence[Series], x_label: str) -> str:
    places = _places(series)
    xs = [axes.x(x) for x, _ in places]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(xs)), WIDTH - RIGHT]
    parts = []
    for index, (x, values) in enumerate(places):
        lines = [f"{x_label} {number_text(x)}", *(f"{line.name} {number_text(y)}" for line, y in values)]
        width = 16 + 7.7 * max(map(len, lines))
        left = xs[index] + 10 if xs[index] + 10 + width < WIDTH else xs[index] - 10 - width
        texts = "".join(
            f'<text x="{left + 7:.0f}" y="{TOP + 17 + 19 * row}">{escape(line)}</text>'
            for row, line in enumerate(lines)
        )
        dots = "".join(
            f'<circle cx="{xs[index]:.1f}" cy="{axes.y(y):.1f}" r="3.5"'
            f' style="fill:var(--s{line.colour % NUM_SERIES_COLOURS})"/>'
            for line, y in values
        )
        parts.append(
            f'<g class="at"><rect class="reach" x="{edges[index]:.1f}" y="{TOP}"'
            f' width="{edges[index + 1] - edges[index]:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
            f'<path class="axis" d="M{xs[index]:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
            f'{dots}<rect class="box" x="{left:.0f}" y="{TOP - 1}" width="{width:.0f}"'
            f' height="{9 + 19 * len(lines)}" rx="4"/>{texts}</g>'
        )
    return "".join(parts)


def _value_table(series: Sequence[Series], x_label: str) -> Html:
    rows = []
    for x, values in _places(series):
        there = {id(line): number_text(y) for line, y in values}
        rows.append([number_text(x), *(there.get(id(line), "") for line in series)])
    return folded("values", table([x_label, *(line.name for line in series)], rows, num_text=0))


def _legend(series: Sequence[Series]) -> Html:
    items = []
    for line in filter(lambda line: line.is_in_legend, series):
        dashes = ' class="dashed"' if line.is_dashed else ""
        key = (
            f'<svg viewBox="0 0 22 10" aria-hidden="true"><polyline{dashes} points="0,5 22,5"'
            f' style="stroke:var(--s{line.colour % NUM_SERIES_COLOURS});stroke-width:3"/></svg>'
        )
        note = f" <b>{escape(line.note)}</b>" if line.note else ""
        items.append(f"<li>{key}{escape(line.name)}{note}</li>")
    return Html(f'<ul class="legend">{"".join(items)}</ul>')


def _note(text: str) -> Html:
    return Html(f'<ul class="legend"><li>{escape(text)}</li></ul>')


def _figure(title: str, legend: str, body: str, summary: str, below: str = "", height: int = HEIGHT) -> Html:
    return Html(
        f"<figure><figcaption>{markup(title)}</figcaption>{legend}"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(summary)}">{body}</svg>'
        f"{below}</figure>"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 14 else f"{text[:13]}…"
