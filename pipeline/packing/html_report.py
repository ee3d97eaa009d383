"""A build as one HTML page without outside parts: shares against weights, lengths, padding, refusals."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.packing.build_report import read_report
from pipeline.packing.duplicate_table import duplicate_table
from schemas.atomic_write import write_atomically
from schemas.packed_folder import PackedFolder

MAX_SAMPLED_ROWS = 20_000
NUM_BINS = 40
COLOURS = ("#3b6ea5", "#c8553d", "#588b8b", "#f0a202", "#7d5ba6", "#6a994e", "#bc4b51", "#5b8e7d")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}
svg{display:block;margin:.5rem 0}svg text{font:12px system-ui,sans-serif;fill:#444}
.note{color:#666;font-size:13px}"""


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
        f"<h1>Packed set {html.escape(output.name)}</h1>",
        f"<p>{report['sequences']:,} sequences of {report['seq_length']:,} ids: {report['ids']:,} ids and"
        f" {report['padding']:,} of padding ({report['padding_fraction']:.3%}). Mixture"
        f" <code>{report['mixture']}</code>.</p>",
        f"<h2>Shares of {unit} against weights</h2>",
        share_chart(report["sources"], unit),
        source_table(report["sources"]),
        "<h2>Along the set</h2>",
        "<p class=note>Share of each source in what stands before, against its weight (dashed).</p>",
        prefix_chart(folder, report["sources"], rows, unit),
        "<h2>Lengths of documents</h2>",
        length_chart(folder, rows),
        "<h2>Padding of rows</h2>",
        padding_chart(folder, rows),
        "<h2>Exact duplicates</h2>",
        duplicate_table(report),
        "<h2>Refused</h2>",
        refusal_table(report["sources"]),
    ]
    page = f"<!doctype html><meta charset=utf-8><title>Packed set</title><style>{STYLE}</style>" + "".join(
        parts
    )
    path = output / "report.html"
    write_atomically(path, page.encode())
    return path


def sample_rows(folder: PackedFolder) -> list[int]:
    """Rows that charts look at, evenly spread."""
    return np.unique(np.linspace(0, len(folder) - 1, min(len(folder), MAX_SAMPLED_ROWS)).astype(int)).tolist()


def source_table(sources: Sequence[dict[str, Any]]) -> str:
    head = "<tr><th>source<th>in<th>packed<th>refused<th>left over<th>split<th>images<th>ids<th>learned"
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
        else "<p>Nothing was refused.</p>"
    )


def share_chart(sources: Sequence[dict[str, Any]], unit: str) -> str:
    """One bar per source, its weight as a mark."""
    column = "ids" if unit == "ids" else "documents_packed"
    total = max(sum(source[column] for source in sources), 1)
    body = ""
    for index, source in enumerate(sources):
        top, share = 8 + 28 * index, source[column] / total
        body += bar(150, top, 500 * share, 18, COLOURS[index % len(COLOURS)])
        mark = 150 + 500 * source["share"]
        body += line(mark, top - 3, mark, top + 21, 'stroke="#000" stroke-width="2"')
        body += label(0, top + 14, source["name"])
        body += label(660, top + 14, f"{share:.2%}, weight {source['share']:.2%}")
    return svg(860, 16 + 28 * len(sources), body)


def prefix_chart(
    folder: PackedFolder, sources: Sequence[dict[str, Any]], rows: Sequence[int], unit: str
) -> str:
    """Cumulative shares along the packed set."""
    amounts = np.zeros((len(rows), len(sources)))
    for place, row in enumerate(rows):
        sequence = folder[row]
        counted = np.diff(sequence.cu_seqlens) if unit == "ids" else 1
        np.add.at(amounts[place], sequence.sources, counted)
    totals = np.cumsum(amounts, axis=0)
    shares = totals / np.maximum(totals.sum(axis=1, keepdims=True), 1)
    picked = np.unique(np.linspace(0, len(rows) - 1, 400).astype(int))
    body = ""
    for index, source in enumerate(sources):
        colour = COLOURS[index % len(COLOURS)]
        x = 40 + 780 * picked / max(len(rows) - 1, 1)
        y = 10 + 200 * (1 - shares[picked, index])
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        body += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        level = 10 + 200 * (1 - source["share"])
        body += line(40, level, 820, level, f'stroke="{colour}" stroke-dasharray="4 4"')
    return svg(860, 225, body + label(0, 14, "1") + label(0, 214, "0"))


def length_chart(folder: PackedFolder, rows: Sequence[int]) -> str:
    lengths = np.concatenate([np.diff(folder[row].cu_seqlens) for row in rows])
    edges = np.geomspace(1, folder.seq_length + 1, NUM_BINS + 1)
    return histogram(np.histogram(lengths, edges)[0], "1", f"{folder.seq_length} ids (logarithmic)")


def padding_chart(folder: PackedFolder, rows: Sequence[int]) -> str:
    padding = np.array([folder.seq_length - folder[row].num_ids for row in rows])
    most = max(int(padding.max()), NUM_BINS)
    return histogram(
        np.histogram(padding, np.linspace(0, most, NUM_BINS + 1))[0], "0", f"{most} ids of padding"
    )


def histogram(counts: NDArray[np.integer], left: str, right: str) -> str:
    body = ""
    for index, count in enumerate(counts.tolist()):
        height = 160 * count / max(int(counts.max()), 1)
        body += bar(40 + 19 * index, 170 - height, 17, height, COLOURS[0], f"{count:,}")
    return svg(860, 200, body + label(40, 188, left) + label(640, 188, right))


def bar(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">'
        f"<title>{html.escape(title)}</title></rect>"
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def label(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}">{html.escape(text)}</text>'


def svg(width: int, height: int, body: str) -> str:
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}">{body}</svg>'
