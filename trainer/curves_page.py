"""The metrics of a run as one HTML page: losses, learning rate, speed, waiting for data, gradient norm.

Every number of ``metrics.jsonl`` is drawn: those known here with title and unit, others under their name.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schemas.atomic_write import write_atomically
from schemas.html_page import Html, code_block, folded, heading, page, tiles
from schemas.svg_chart import Series, line_chart
from trainer.metrics import read_metrics

SMOOTHING = 0.7
"""Share of the past in the running mean that is drawn over raw losses and gradient norms."""
MAX_SOURCES = 4
"""Sources in one chart; more go into further ones."""

Records = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Chart:
    """A chart of metrics whose meaning is known."""

    title: str
    y_label: str
    names: dict[str, str]
    """Metric -> name in the legend."""
    scale: float = 1.0
    smoothing: float = 0.0
    starts_at_zero: bool = False


CHARTS = (
    Chart("Learning rate", "learning rate", {"learning_rate": "learning rate", "lr": "learning rate"}),
    Chart("Gradient norm, before clipping", "norm", {"grad_norm": "norm"}, 1, SMOOTHING, True),
    Chart("Speed", "ids/s, padding left out", {"ids_per_s": "ids/s"}, 1, 0, True),
    Chart("Speed", "images/s", {"images_s": "images/s"}, 1, 0, True),
    Chart("Model FLOPs utilisation", "% of the device's peak", {"mfu": "MFU"}, 100, 0, True),
    Chart(
        "Waiting and padding",
        "%",
        {"data_wait_fraction": "time spent waiting for data", "padding_fraction": "ids that are padding"},
        100, 0, True,
    ),
    Chart("Peak memory", "GiB", {"memory_gib": "GiB"}, 1, 0, True),
)  # fmt: skip
LOSSES = {"loss": "all ids", "loss_text": "text ids", "loss_image": "image ids"}
VALIDATION = "validation/"
BY_SOURCE = "loss/"


def write_curves(folder: Path) -> Path:
    """``curves.html`` beside the ``metrics.jsonl`` of a run, also of one that still runs.

    Raises:
        ValueError: when there are no two records to draw a line through.
    """
    records = read_metrics(folder / "metrics.jsonl")
    if len(records) < 2:
        raise ValueError(f"{folder}: metrics.jsonl holds {len(records)} records, a curve needs two")
    config = folder / "config.json"
    settings = config.read_text(encoding="utf-8") if config.exists() else ""
    content = render_curves(folder.name, records, settings)
    path = folder / "curves.html"
    write_atomically(path, content.encode("utf-8", "backslashreplace"))
    return path


def render_curves(name: str, records: Records, settings: str = "") -> str:
    """The whole page."""
    names = dict.fromkeys(key for record in records for key in record if key != "step")
    known = {metric for chart in CHARTS for metric in chart.names} | set(LOSSES)
    others = [key for key in names if key not in known and not key.startswith((BY_SOURCE, VALIDATION))]
    by_modality = LOSSES if any(name in names for name in LOSSES if name != "loss") else {"loss": "loss"}
    losses = [_lines("Loss", _loss_lines(records, by_modality)), *_losses_by_source(records, names)]
    charts = [*CHARTS, *(Chart(key, key, {key: key}) for key in others)]
    return page(
        f"Training run {name}",
        [
            heading(
                f"Training run {name}",
                "Thin lines as recorded, thick ones a running mean; dots: validation.",
            ),
            tiles(_figures(records)),
            folded("Settings", code_block(settings)) if settings else "",
            "<h2>Losses</h2>",
            f'<div class="charts two">{"".join(losses)}</div>',
            "<h2>Optimizer and speed</h2>",
            f'<div class="charts">{"".join(_chart(records, chart) for chart in charts)}</div>',
        ],
    )


def _figures(records: Records) -> list[tuple[str, str]]:
    """What one wants to know first."""
    figures = [(f"{max(int(record['step']) for record in records):,}", "steps")]
    for name, title in (("loss", "loss"), (f"{VALIDATION}loss", "validation loss")):
        if values := _values(records, name):
            figures.append((f"{values[-1]:.2f}", f"{title}, {values[0]:.2f} at first"))
    if speeds := _values(records, "ids_per_s"):
        mfu = _values(records, "mfu")
        share = f", MFU {statistics.median(mfu):.1%}" if mfu else ""
        figures.append((f"{statistics.median(speeds):,.0f}", f"ids/s, median{share}"))
    return figures


def _values(records: Records, name: str) -> list[float]:
    return [record[name] for record in records if name in record]


def _series(records: Records, name: str, title: str, colour: int, scale: float = 1.0) -> Series | None:
    """One metric over the steps that have a finite value of it; None where no step has."""
    points = [(r["step"], scale * r[name]) for r in records if name in r and math.isfinite(r[name])]
    if not points:
        return None
    x, y = zip(*points, strict=True)
    return Series(title, x, y, colour)


def _loss_lines(records: Records, names: Mapping[str, str]) -> list[Series]:
    """Training losses with a running mean, and the same of the validation set as dots."""
    lines = []
    for colour, (name, title) in enumerate(names.items()):
        line = _series(records, name, title, colour)
        held_out = _series(records, VALIDATION + name, f"{title}, validation", colour)
        note = f"{line.y[0]:.2f} → {line.y[-1]:.2f}" if line is not None else ""
        if held_out is not None:
            note += f" (validation {held_out.y[-1]:.2f})"
            lines.append(
                replace(held_out, is_dashed=True, has_dots=True, is_in_legend=line is None, note=note)
            )
        if line is not None:
            lines.append(replace(line, smoothing=SMOOTHING, note=note))
    return lines


def _losses_by_source(records: Records, names: Iterable[str]) -> list[Html]:
    found = dict.fromkeys(name.removeprefix(VALIDATION) for name in names)
    sources = [name for name in found if name.startswith(BY_SOURCE)]
    groups = [sources[at : at + MAX_SOURCES] for at in range(0, len(sources), MAX_SOURCES)]
    return [
        _lines("Loss by source", _loss_lines(records, {name: name.removeprefix(BY_SOURCE) for name in group}))
        for group in groups
    ]


def _lines(title: str, lines: list[Series]) -> Html:
    return line_chart(title, lines, x_label="step", y_label="nats") if lines else Html()


def _chart(records: Records, chart: Chart) -> Html:
    lines = [
        replace(line, smoothing=chart.smoothing)
        for colour, (name, title) in enumerate(chart.names.items())
        if (line := _series(records, name, title, colour, chart.scale)) is not None
    ]
    if not lines:
        return Html()
    top = max(value for line in lines for value in line.y)
    y_range = (0.0, top) if chart.starts_at_zero else None
    return line_chart(chart.title, lines, x_label="step", y_label=chart.y_label, y_range=y_range)
