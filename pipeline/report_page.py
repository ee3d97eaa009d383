"""The report on a folder of token shards as one HTML page: counts, quarantine, code usage, documents.

Pictures stand in the page as data URIs; whatever comes from data (captions, keys, file names) is escaped.
"""

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.validate_shards import PER_IMAGE
from schemas.document import Document, ImageSegment, TextSegment
from schemas.html_page import Html, bytes_text, code_block, folded, heading, page, table, tiles
from schemas.svg_chart import bar_chart

if TYPE_CHECKING:
    from pipeline.report import CodesByPlace, Report, ShardLine, ShownDocument
    from schemas.token_shard import ShardCounts

MAX_SHARDS_LISTED = 500
CHARS_SHOWN = 600
MAX_CHARS_OF_TEXT = 20_000
"""Of one text; the part beyond ``CHARS_SHOWN`` is folded."""
SHORT_CHARS = 400
"""Documents of one picture and no more text than this stand two in a row."""
HISTOGRAM_BINS = 128


def render_page(report: "Report") -> str:
    """The whole page."""
    return page(
        f"Token shards: {report.url}",
        [
            _head(report),
            "<h2>Documents</h2>",
            f'<div class="gallery">{"".join(_document(shown) for shown in report.gallery)}</div>',
            "<h2>Source shards</h2>",
            _shard_table(report),
            "<h2>Quarantine</h2>",
            _quarantine(report),
            "<h2>Code usage</h2>",
            _code_usage(report.usage, report.fingerprint.num_codes),
        ],
    )


def _head(report: "Report") -> str:
    counts, source_bytes = report.counts, report.source_bytes
    images = counts.images_written
    tokenizer = dict(report.fingerprint.components)
    settings = json.dumps({"tokenizer": tokenizer, "settings": report.settings}, indent=1)
    share = _share(report.num_bytes, source_bytes), "of the source bytes"
    in_shards = "in source shards" if report.counts_pictures else "in source shards, without their pictures"
    code = f"<code>{escape(report.fingerprint.hex)}</code>"
    return (
        heading(report.url, Html(f"Token shards, kind {escape(report.kind)}, tokenizer {code}"))
        + tiles(
            [
                (f"{len(report.shards):,}", "token shards"),
                (f"{counts.documents_written:,}", f"documents of {counts.samples_read:,} samples"),
                (f"{images:,}", f"images of {counts.images_read:,}"),
                (f"{counts.num_quarantined:,}", "samples quarantined"),
                (bytes_text(report.num_bytes), "in token shards"),
                (bytes_text(source_bytes), in_shards),
                *([share] if report.counts_pictures else []),
                (f"{report.num_bytes / images:,.1f} B" if images else "-", f"an image, {PER_IMAGE}"),
            ]
        )
        + folded("Tokenizer and settings", code_block(settings))
    )


def _shard_table(report: "Report") -> str:
    head = [
        "Shard", "Samples", "Documents", "Quarantined", "Images", "Dropped", "Token bytes", "Source bytes",
        "Share",
    ]  # fmt: skip
    rows = [_shard_row(shard) for shard in report.shards[:MAX_SHARDS_LISTED]]
    more = len(report.shards) - MAX_SHARDS_LISTED
    note = f'<p class="soft">and {more:,} more; the sums are of all</p>' if more > 0 else ""
    figures = _figures(report.counts, report.num_bytes, report.source_bytes, report.counts_pictures)
    total = ["Sum", *figures]
    return table(head, rows, total=total) + note


def _shard_row(shard: "ShardLine") -> list[str]:
    footer = shard.footer
    damage = "" if footer.source_complete else ' <span class="warn">source damaged</span>'
    name = f'{escape(shard.name)}{damage}<br><span class="soft code">{escape(footer.source)}</span>'
    return [Html(name), *_figures(footer.counts, shard.num_bytes, footer.source_bytes, shard.counts_pictures)]


def _figures(
    counts: "ShardCounts", num_bytes: int, source_bytes: int | None, counts_pictures: bool
) -> list[str]:
    """Cells of a row; the share only where the source bytes are those of its pictures, too."""
    return [
        f"{counts.samples_read:,}",
        f"{counts.documents_written:,}",
        f"{counts.num_quarantined:,}",
        f"{counts.images_written:,}",
        f"{sum(counts.images_dropped.values()):,}",
        bytes_text(num_bytes),
        bytes_text(source_bytes),
        _share(num_bytes, source_bytes) if counts_pictures else "-",
    ]


def _quarantine(report: "Report") -> str:
    counts = report.counts
    units = {"samples": counts.samples_quarantined, "images": counts.images_dropped, "notes": counts.notes}
    lines = [(number, reason, unit) for unit, reasons in units.items() for reason, number in reasons.items()]
    if not lines:
        return '<p class="soft">Nothing was refused.</p>'
    largest = max(number for number, _, _ in lines)
    rows = []
    for number, reason, unit in sorted(lines, reverse=True):
        texts = (
            f"{record.source} {record.key}".rstrip() + f": {record.detail[:200]}"
            for record in report.examples.get((unit, reason), ())
        )
        examples = "<br>".join(f'<span class="code">{escape(text)}</span>' for text in texts)
        bar = f'<span class="bar" style="width:{max(2, round(90 * number / largest))}px"></span>'
        rows.append([reason, unit, Html(bar), Html(f'<span class="soft">{examples}</span>'), f"{number:,}"])
    return table(["Reason", "What", "", "For example", "Count"], rows, num_text=4)


def _code_usage(usage: "CodesByPlace", codebook_size: int) -> str:
    totals = usage.totals[:codebook_size]
    num_codes = int(totals.sum())
    if not num_codes:
        return '<p class="soft">No images.</p>'
    used = int((totals > 0).sum())
    figures = tiles(
        [
            (f"{num_codes:,}", "codes in all"),
            (f"{used:,}", f"of {codebook_size:,} codes occur"),
            (f"{usage.perplexity():,.0f}", f"perplexity (at most {min(num_codes, codebook_size):,})"),
            (f"{100 * totals.max() / num_codes:.2f} %", f"are the commonest, code {int(totals.argmax())}"),
        ]
    )
    by_place = np.array(usage.perplexity_by_place())
    charts = [
        _histogram(np.sort(totals)[::-1], "Uses of a code, commonest first", "rank"),
        _histogram(totals, "Uses of a code", "index of the code"),
        bar_chart(
            "Perplexity at each of the 32 places",
            by_place.tolist(),
            [f"place {place + 1}" for place in range(len(by_place))],
            x_ticks=[(place - 0.5, str(place)) for place in (1, 8, 16, 24, 32)],
            x_label="place in the image",
            y_label="perplexity, codes",
        ),
    ]
    return f'{figures}<div class="charts">{"".join(charts)}</div>'


def _histogram(counts: NDArray[np.int64], title: str, what: str) -> str:
    """Mean uses of neighbouring codes."""
    width = -(-len(counts) // HISTOGRAM_BINS)
    groups: Sequence[NDArray[np.int64]] = [counts[at : at + width] for at in range(0, len(counts), width)]
    ends = [(index * width, min((index + 1) * width, len(counts)) - 1) for index in range(len(groups))]
    marks = [round(len(groups) * share) for share in (0, 0.25, 0.5, 0.75, 1)]
    return bar_chart(
        title,
        [float(group.mean()) for group in groups],
        [f"{what} {first} to {last}" for first, last in ends],
        x_ticks=[(mark, f"{min(mark * width, len(counts)):,}") for mark in marks],
        x_label=what,
        y_label="uses" if width == 1 else f"uses, mean of {width} codes",
    )


def _document(shown: "ShownDocument") -> str:
    document = shown.document
    header = f'<b>{escape(document.key)}</b><span class="soft">{escape(shown.shard)}</span>'
    body = _segments(document, list(shown.pictures))
    metadata = ""
    if document.metadata:
        metadata = folded("metadata", code_block(document.metadata[:MAX_CHARS_OF_TEXT]))
    is_short = len(document.images) < 2 and sum(map(len, document.texts)) <= SHORT_CHARS
    kind = "" if is_short else ' class="long"'
    return f"<article{kind}><header>{header}</header>{body}{metadata}</article>"


def _segments(document: Document, pictures: list[bytes | None]) -> str:
    """Text and images in reading order; neighbouring images (frames of a clip) stand side by side."""
    parts: list[str] = []
    images: list[str] = []
    remaining = iter(enumerate(pictures, start=1))
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            number, picture = next(remaining)
            images.append(_image(segment, picture, f"image {number} of {document.key}"))
            continue
        parts += _side_by_side(images)
        images = []
        parts.append(_text(segment))
    return "".join([*parts, *_side_by_side(images)])


def _side_by_side(images: list[str]) -> list[str]:
    return [f'<div class="segment images">{"".join(images)}</div>'] if images else []


def _text(segment: TextSegment) -> str:
    text, end = segment.text, len(segment.text)
    rest = ""
    if len(text) > CHARS_SHOWN:
        end = max(
            text.rfind(" ", CHARS_SHOWN - 40, CHARS_SHOWN), text.rfind("\n", CHARS_SHOWN - 40, CHARS_SHOWN)
        )
        end = end if end > 0 else CHARS_SHOWN
        left_out = len(text) - MAX_CHARS_OF_TEXT
        note = f'<p class="soft">and {left_out:,} more</p>' if left_out > 0 else ""
        hidden = Html(f"<p>{escape(text[end:MAX_CHARS_OF_TEXT])}</p>{note}")
        rest = folded(f"{len(text) - end:,} more characters", hidden)
    return f'<div class="segment"><p>{_role(segment)}{escape(text[:end])}</p>{rest}</div>'


def _role(segment: TextSegment | ImageSegment) -> str:
    return f'<span class="role">{escape(segment.role)}</span>' if segment.role else ""


def _image(segment: ImageSegment, picture: bytes | None, name: str) -> str:
    if picture is None:
        shown = '<div class="nothing">source not found</div>'
    else:
        data = base64.b64encode(picture).decode()
        shown = f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'
    time = "" if segment.time_s is None else f'<span class="soft">{segment.time_s:.2f} s</span>'
    codes = "".join(f"<span>{code}</span>" for code in segment.codes.tolist())
    return f'<div class="image">{_role(segment)}{time}{shown}<div class="codes">{codes}</div></div>'


def _share(part: int, whole: int | None) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "unknown"
