"""A build as one HTML page: shares against weights, lengths of documents, padding, refusals."""

import html
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.packing.build_report import read_report
from pipeline.packing.duplicate_table import duplicate_table
from schemas.atomic_write import write_atomically
from schemas.html_page import Html, heading, page, tiles
from schemas.packed_folder import PackedFolder
from schemas.svg_chart import Series, bar_chart, line_chart, share_chart, spread, ticks

MAX_SAMPLED_ROWS = 20_000
NUM_BINS = 40
MAX_POINTS = 400


def write_html_report(output: Path) -> Path:
    """``report.html`` beside the packed shards.

    Raises:
        FileNotFoundError: if the folder holds no finished build.
    """
    report: dict[str, Any] = read_report(output)
    folder = PackedFolder(output)
    rows = sample_rows(folder)
    unit = report["components"]["config"]["weight_unit"]
    parts = [
        heading(f"Packed set {output.name}", Html(f"Mixture <code>{html.escape(report['mixture'])}</code>")),
        tiles(
            [
                (f"{report['sequences']:,}", f"sequences of {report['seq_length']:,} ids"),
                (f"{report['ids']:,}", "ids"),
                (f"{report['padding_fraction']:.3%}", f"padding: {report['padding']:,} ids"),
                (f"{sum(source['images'] for source in report['sources']):,}", "images"),
            ]
        ),
        "<h2>Sources</h2>",
        '<div class="charts two">',
        chart_of_shares(report["sources"], unit),
        prefix_chart(folder, report["sources"], rows, unit),
        "</div>",
        source_table(report["sources"]),
        "<h2>Documents and rows</h2>",
        '<div class="charts two">',
        length_chart(folder, rows),
        padding_chart(folder, rows),
        "</div>",
        "<h2>Exact duplicates</h2>",
        duplicate_table(report),
        "<h2>Left out by filters, and refused</h2>",
        refusal_table(report["sources"]),
    ]
    path = output / "report.html"
    write_atomically(path, page(f"Packed set {output.name}", parts).encode("utf-8", "backslashreplace"))
    return path


def sample_rows(folder: PackedFolder) -> list[int]:
    """Rows that charts look at, evenly spread."""
    places = np.linspace(0, len(folder) - 1, min(len(folder), MAX_SAMPLED_ROWS))
    return [int(place) for place in np.unique(places.astype(int))]


def source_table(sources: Sequence[dict[str, Any]]) -> str:
    head = (
        "<tr><th>source<th>in<th>packed<th>left out or refused<th>left over<th>split<th>images"
        "<th>ids<th>learned"
    )
    rows = "".join(
        f"<tr><td>{html.escape(source['name'])}<td>{source['documents_in']:,}<td>{source['documents_packed']:,}"
        f"<td>{sum(source['documents_refused'].values()):,}<td>{source['documents_left_over']:,}"
        f"<td>{source['documents_split']:,}<td>{source['images']:,}<td>{source['ids']:,}"
        f"<td>{source['ids_learned'] / max(source['ids'], 1):.1%}"
        for source in sources
    )
    return f"<table>{head}{rows}</table>"


def refusal_table(sources: Sequence[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(source['name'])}<td>{html.escape(reason)}<td>{count:,}"
        for source in sources
        for reason, count in source["documents_refused"].items()
    )
    return (
        f"<table><tr><th>source<th>reason<th>documents{rows}</table>"
        if rows
        else "<p>Nothing was left out or refused.</p>"
    )


def chart_of_shares(sources: Sequence[dict[str, Any]], unit: str) -> Html:
    """One bar per source, its weight as a mark."""
    column = "ids" if unit == "ids" else "documents_packed"
    total = max(sum(source[column] for source in sources), 1)
    shares = [(source["name"], source[column] / total, source["share"]) for source in sources]
    return share_chart(f"Share of the {unit} by source", shares)


def prefix_chart(
    folder: PackedFolder, sources: Sequence[dict[str, Any]], rows: Sequence[int], unit: str
) -> Html:
    """Cumulative shares along the packed set."""
    amounts = np.zeros((len(rows), len(sources)))
    for place, row in enumerate(rows):
        sequence = folder[row]
        counted = np.diff(sequence.cu_seqlens) if unit == "ids" else 1
        np.add.at(amounts[place], sequence.sources, counted)
    totals = np.cumsum(amounts, axis=0)
    shares = totals / np.maximum(totals.sum(axis=1, keepdims=True), 1)
    picked = spread(len(rows), MAX_POINTS)
    numbers = [rows[place] for place in picked]
    lines = []
    for index, source in enumerate(sources):
        reached = shares[picked, index].tolist()
        lines.append(Series(source["name"], numbers, reached, index, note=f"{source['share']:.1%}"))
        ends = [numbers[0], numbers[-1]]
        weight = Series(
            f"{source['name']}, weight",
            ends,
            [source["share"]] * 2,
            index,
            is_dashed=True,
            is_in_legend=False,
        )
        lines.append(weight)
    return line_chart(
        f"Share of the {unit} so far; dashed: weight",
        lines,
        x_label="row",
        y_label="share",
        y_range=(0.0, 1.0),
    )


def length_chart(folder: PackedFolder, rows: Sequence[int]) -> Html:
    lengths = np.concatenate([np.diff(folder[row].cu_seqlens) for row in rows])
    edges = np.geomspace(1, folder.seq_length, NUM_BINS + 1)
    powers = [4**power for power in range(16) if 4**power <= folder.seq_length / 2]
    marks = [
        (NUM_BINS * math.log(length) / math.log(folder.seq_length), f"{length:,}")
        for length in [*powers, folder.seq_length]
    ]
    return histogram(
        "Documents by length", lengths, edges, marks, "ids of a document (logarithmic)", "documents"
    )


def padding_chart(folder: PackedFolder, rows: Sequence[int]) -> Html:
    padding = np.array([folder.seq_length - folder[row].num_ids for row in rows])
    steps = ticks(0, max(int(padding.max()), NUM_BINS))
    edges = np.linspace(0, steps[-1], NUM_BINS + 1)
    marks = [(NUM_BINS * tick / steps[-1], f"{tick:,.0f}") for tick in steps]
    return histogram("Rows by padding", padding, edges, marks, "ids of padding in a row", "rows")


def histogram(
    title: str,
    values: NDArray[np.integer],
    edges: NDArray[np.float64],
    x_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> Html:
    names = [f"{low:,.0f} to {high:,.0f}" for low, high in pairwise(edges.tolist())]
    counts = np.histogram(values, edges)[0].tolist()
    return bar_chart(title, counts, names, x_ticks=x_ticks, x_label=x_label, y_label=y_label)
