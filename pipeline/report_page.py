"""The report as one HTML page: no scripts, no links to other hosts, pictures inside as data URIs.

Whatever comes from data (captions, keys, file names) is escaped. A Content-Security-Policy in the page also
forbids scripts and requests, should an escape ever be forgotten.
"""

import base64
import json
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.report_style import STYLE
from schemas.document import Document, ImageSegment, TextSegment
from schemas.vocabulary import CODEBOOK_SIZE

if TYPE_CHECKING:
    from pipeline.report import CodeUsage, Report, ShardLine, ShownDocument

MAX_SHARDS_LISTED = 500
CHARS_SHOWN = 900
MAX_CHARS_OF_TEXT = 20_000
"""Of one text; the part beyond ``CHARS_SHOWN`` is folded."""
HISTOGRAM_BINS = 256


def render_page(report: "Report") -> str:
    """The whole page."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
            " style-src 'unsafe-inline'\">",
            f"<title>Token shards: {escape(report.url)}</title><style>{STYLE}</style></head><body>",
            _head(report),
            "<h2>Source shards</h2>",
            _shard_table(report),
            "<h2>Quarantine</h2>",
            _quarantine(report),
            "<h2>Code usage</h2>",
            _code_usage(report.usage),
            "<h2>Documents</h2>",
            *(_document(shown) for shown in report.gallery),
            "</body></html>\n",
        ]
    )


def _head(report: "Report") -> str:
    counts, source_bytes = report.counts, report.source_bytes
    images = counts.images_written
    tiles = [
        (f"{len(report.shards):,}", "token shards"),
        (f"{counts.documents_written:,}", f"documents of {counts.samples_read:,} samples"),
        (f"{counts.num_quarantined:,}", "samples quarantined"),
        (f"{images:,}", f"images of {counts.images_read:,}"),
        (_bytes(report.num_bytes), "in token shards"),
        (_bytes(source_bytes) if source_bytes else "unknown", "in source shards"),
        (_share(report.num_bytes, source_bytes), "of the source bytes"),
        (f"{report.num_bytes / images:,.1f}" if images else "-", "bytes an image, text included"),
    ]
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    settings = escape(json.dumps({"tokenizer": report.components, "settings": report.settings}, indent=1))
    return (
        f"<h1>{escape(report.url)}</h1>"
        f'<p class="soft">{escape(report.kind)}, tokenizer <code>{escape(report.fingerprint)}</code></p>'
        f'<div class="tiles">{cells}</div>'
        f"<details><summary>Tokenizer and settings</summary>"
        f'<p class="code" style="white-space:pre-wrap">{settings}</p></details>'
    )


def _shard_table(report: "Report") -> str:
    head = _row(
        "th",
        [
            "Shard",
            "Samples",
            "Documents",
            "Quarantined",
            "Images",
            "Dropped",
            "Token bytes",
            "Source bytes",
            "",
        ],
    )
    rows = "".join(_shard_row(shard) for shard in report.shards[:MAX_SHARDS_LISTED])
    more = len(report.shards) - MAX_SHARDS_LISTED
    note = f'<p class="soft">and {more:,} more; the sums are of all</p>' if more > 0 else ""
    counts = report.counts
    total = _row(
        "td",
        [
            "Sum",
            f"{counts.samples_read:,}",
            f"{counts.documents_written:,}",
            f"{counts.num_quarantined:,}",
            f"{counts.images_written:,}",
            f"{sum(counts.images_dropped.values()):,}",
            _bytes(report.num_bytes),
            _bytes(report.source_bytes),
            _share(report.num_bytes, report.source_bytes),
        ],
    )
    body = f"<thead>{head}</thead><tbody>{rows}</tbody><tfoot>{total}</tfoot>"
    return f'<div class="scroll"><table>{body}</table></div>{note}'


def _shard_row(shard: "ShardLine") -> str:
    footer = shard.footer
    counts = footer.counts
    damage = "" if footer.source_complete else ' <span class="warn">source damaged</span>'
    name = f'{escape(shard.name)}{damage}<br><span class="soft code">{escape(footer.source)}</span>'
    return _row(
        "td",
        [
            name,
            f"{counts.samples_read:,}",
            f"{counts.documents_written:,}",
            f"{counts.num_quarantined:,}",
            f"{counts.images_written:,}",
            f"{sum(counts.images_dropped.values()):,}",
            _bytes(shard.num_bytes),
            _bytes(footer.source_bytes),
            _share(shard.num_bytes, footer.source_bytes),
        ],
    )


def _row(tag: str, cells: list[str]) -> str:
    first, *numbers = cells
    return (
        f"<tr><{tag}>{first}</{tag}>"
        + "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in numbers)
        + "</tr>"
    )


def _quarantine(report: "Report") -> str:
    counts = report.counts
    units = {"samples": counts.samples_quarantined, "images": counts.images_dropped, "notes": counts.notes}
    lines = [(number, reason, unit) for unit, reasons in units.items() for reason, number in reasons.items()]
    if not lines:
        return '<p class="soft">Nothing was refused.</p>'
    largest = max(number for number, _, _ in lines)
    rows = []
    for number, reason, unit in sorted(lines, reverse=True):
        examples = "<br>".join(
            f'<span class="code">{escape(f"{record.source} {record.key}: {record.detail[:200]}")}</span>'
            for record in report.examples.get((unit, reason), ())
        )
        bar = f'<span class="bar" style="width:{max(2, round(90 * number / largest))}px"></span>'
        rows.append(
            f"<tr><td>{escape(reason)}</td><td>{unit}</td><td class=number>{number:,}</td><td>{bar}</td>"
            f'<td class="soft">{examples}</td></tr>'
        )
    head = "<tr><th>Reason</th><th>What</th><th class=number>Count</th><th></th><th>For example</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _code_usage(usage: "CodeUsage") -> str:
    totals = usage.totals
    num_codes = int(totals.sum())
    if not num_codes:
        return '<p class="soft">No images.</p>'
    used = CODEBOOK_SIZE - usage.num_dead
    tiles = [
        (f"{num_codes:,}", "codes in all"),
        (f"{used:,}", f"of {CODEBOOK_SIZE:,} codes occur"),
        (f"{usage.num_dead:,}", "never occur"),
        (f"{usage.perplexity():,.0f}", f"perplexity (at most {min(num_codes, CODEBOOK_SIZE):,})"),
        (f"{100 * totals.max() / num_codes:.2f} %", f"are the commonest, code {int(totals.argmax())}"),
    ]
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    ranked = np.sort(totals)[::-1].reshape(HISTOGRAM_BINS, -1).mean(axis=1)
    by_index = totals.reshape(HISTOGRAM_BINS, -1).mean(axis=1)
    width = CODEBOOK_SIZE // HISTOGRAM_BINS
    charts = [
        _bars(
            by_index,
            f"Uses of a code, by index (mean of {width} neighbours)",
            "code 0",
            f"{CODEBOOK_SIZE - 1}",
        ),
        _bars(ranked, f"Uses of a code, commonest first (mean of {width})", "rank 1", f"{CODEBOOK_SIZE}"),
        _bars(np.array(usage.perplexity_by_place()), "Perplexity at each of the 32 places", "place 1", "32"),
    ]
    return f'<div class="tiles">{cells}</div><div class="charts">{"".join(charts)}</div>'


def _bars(values: NDArray[np.float64], title: str, first: str, last: str) -> str:
    """A bar chart with its largest value named."""
    width, height, base = 480.0, 150.0, 128.0
    largest = float(values.max()) or 1.0
    step = width / len(values)
    gap = 1.0 if step > 4 else 0.0
    rectangles = "".join(
        f'<rect x="{index * step:.2f}" y="{base - 104 * value / largest:.2f}" width="{step - gap:.2f}"'
        f' height="{104 * value / largest:.2f}"/>'
        for index, value in enumerate(values)
        if value
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f'<line x1="0" x2="{width:g}" y1="{base}" y2="{base}"/>{rectangles}'
        f'<text x="0" y="146">{escape(first)}</text>'
        f'<text x="{width:g}" y="146" text-anchor="end">{escape(last)}</text>'
        f'<text x="{width:g}" y="14" text-anchor="end">largest {largest:,.1f}</text></svg></figure>'
    )


def _document(shown: "ShownDocument") -> str:
    document = shown.document
    header = f'<b>{escape(document.key)}</b><span class="soft">{escape(shown.shard)}</span>'
    body = _segments(document, list(shown.pictures))
    metadata = ""
    if document.metadata:
        metadata = (
            "<details><summary>metadata</summary>"
            f'<p class="code">{escape(document.metadata[:MAX_CHARS_OF_TEXT])}</p></details>'
        )
    return f"<article><header>{header}</header>{body}{metadata}</article>"


def _segments(document: Document, pictures: list[bytes | None]) -> str:
    """Text and images in reading order; neighbouring images (frames of a clip) stand side by side."""
    parts: list[str] = []
    images: list[str] = []
    remaining = iter(pictures)
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            images.append(_image(segment, next(remaining, None)))
            continue
        parts += _side_by_side(images)
        images = []
        parts.append(_text(segment))
    return "".join([*parts, *_side_by_side(images)])


def _side_by_side(images: list[str]) -> list[str]:
    return [f'<div class="segment images">{"".join(images)}</div>'] if images else []


def _text(segment: TextSegment) -> str:
    text = segment.text
    folded = ""
    if len(text) > CHARS_SHOWN:
        left_out = len(text) - MAX_CHARS_OF_TEXT
        note = f'<p class="soft">and {left_out:,} more</p>' if left_out > 0 else ""
        rest = escape(text[CHARS_SHOWN:MAX_CHARS_OF_TEXT])
        summary = f"<summary>{len(text) - CHARS_SHOWN:,} more characters</summary>"
        folded = f"<details>{summary}<p>{rest}</p>{note}</details>"
    return f'<div class="segment"><p>{_role(segment)}{escape(text[:CHARS_SHOWN])}</p>{folded}</div>'


def _role(segment: TextSegment | ImageSegment) -> str:
    return f'<span class="role">{escape(segment.role)}</span>' if segment.role else ""


def _image(segment: ImageSegment, picture: bytes | None) -> str:
    if picture is None:
        shown = '<div class="nothing">source not found</div>'
    else:
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
    time = "" if segment.time_s is None else f'<span class="soft">{segment.time_s:.2f} s</span>'
    codes = "".join(f"<span>{code}</span>" for code in segment.codes.tolist())
    return f'<div class="image">{_role(segment)}{time}{shown}<div class="codes">{codes}</div></div>'


def _bytes(number: int | None) -> str:
    if number is None:
        return "unknown"
    value, units = float(number), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:,.0f} {units[0]}" if units[0] == "B" else f"{value:,.1f} {units[0]}"


def _share(part: int, whole: int | None) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "unknown"
