"""Results of an evaluation as JSON for machines and Markdown for people."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.atomic_write import write_atomically

Tables = Mapping[str, Mapping[str, float]]


def write_report(tables: Tables, settings: Mapping[str, Any], output: Path) -> None:
    """Write ``OUTPUT.json`` and ``OUTPUT.md``: a section a table, rows in order; settings first.

    Args:
        tables: figures by name, by table.
        settings: what was evaluated on what; stands in both files.
        output: path without suffix.
    """
    lines = ["# Evaluation", "", *_setting_lines(settings)]
    for title, table in tables.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---:|"]
        lines += [f"| {name} | {_number(value)} |" for name, value in table.items()]
    _write(tables, settings, lines, output)


def write_comparison(figures: Tables, settings: Mapping[str, Any], output: Path) -> None:
    """Write ``OUTPUT.json`` and ``OUTPUT.md``: figures by variant, one table with a column for each.

    Args:
        figures: figures by name, by variant; all variants have the same.
        settings: what was compared on what.
        output: path without suffix.
    """
    columns = list(figures.values())
    lines = ["# Comparison", "", *_setting_lines(settings), ""]
    lines += [f"| | {' | '.join(figures)} |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {row} | {' | '.join(_number(column[row]) for column in columns)} |" for row in columns[0]]
    _write(figures, settings, lines, output)


def _write(results: Tables, settings: Mapping[str, Any], lines: Sequence[str], output: Path) -> None:
    content = {"settings": dict(settings), "results": {name: dict(table) for name, table in results.items()}}
    text = json.dumps(content, indent=1, default=str) + "\n"
    write_atomically(output.with_name(f"{output.name}.json"), text.encode())
    write_atomically(output.with_name(f"{output.name}.md"), ("\n".join(lines) + "\n").encode())


def _setting_lines(settings: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: `{_one_line(value)}`" for name, value in settings.items()]


def _one_line(value: object) -> str:
    return str(value).replace("\n", "\\n")


def _number(value: float) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if abs(value) >= 0.1 else f"{value:.4g}"
    )
