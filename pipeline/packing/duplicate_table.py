"""The report's table of exact duplicates: which source repeats which, shaded by how many documents."""

import html
from collections.abc import Mapping
from typing import Any

SHADE = "59,110,165"
"""Red, green, blue: seen through on a light and on a dark page."""


def duplicate_table(report: Mapping[str, Any]) -> str:
    """A row for each source, a column for each source of the document that stayed.

    Args:
        report: content of ``report.json``.
    """
    overlaps = report.get("duplicates")
    if overlaps is None:
        return "<p>Not looked for: the mixture does not say <code>deduplicate: true</code>.</p>"
    if not overlaps:
        return "<p>No document of any source equals another.</p>"
    numbers = {(entry["source"], entry["first_in"]): entry["documents"] for entry in overlaps}
    names, most = [source["name"] for source in report["sources"]], max(numbers.values())
    head = "".join(f"<th>of {html.escape(name)}" for name in names)
    rows = ""
    for source in names:
        counts = [numbers.get((source, first), 0) for first in names]
        cells = "".join(
            _cell(count, count / most, f"{count:,} documents of {source} equal an earlier one of {first}")
            for count, first in zip(counts, names, strict=True)
        )
        rows += f"<tr><td>{html.escape(source)}{cells}<td>{sum(counts):,}"
    return (
        "<p>Documents in the files of a source that equal an earlier one, of the same or another source, to"
        " the last character and code, after filters. The first stayed, these were left out.</p>"
        f"<table><tr><th>duplicates in{head}<th>together{rows}</table>"
    )


def _cell(count: int, depth: float, title: str) -> str:
    shade = f' style="background:rgba({SHADE},{0.1 + 0.5 * depth:.2f})"' if count else ""
    return f'<td{shade} title="{html.escape(title, quote=True)}">{count:,}'
