"""Results of an evaluation as JSON for machines and Markdown for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.atomic_write import write_atomically

Tables = Mapping[str, Mapping[str, float]]


def write_report(tables: Tables, settings: Mapping[str, Any], output: Path) -> None:
    """Write ``OUTPUT.json`` and ``OUTPUT.md``.

    Args:
        tables: figures by name, by table.
        settings: what was evaluated on what; stands in both files.
        output: path without suffix.
    """
    content = {"settings": dict(settings), "results": {name: dict(table) for name, table in tables.items()}}
    text = json.dumps(content, indent=1, default=str) + "\n"
    write_atomically(output.with_name(f"{output.name}.json"), text.encode())
    write_atomically(output.with_name(f"{output.name}.md"), markdown(tables, settings).encode())


def markdown(tables: Tables, settings: Mapping[str, Any]) -> str:
    """One section a table, rows in order; settings first."""
    lines = ["# Evaluation", "", *(f"- {name}: `{_one_line(value)}`" for name, value in settings.items())]
    for title, table in tables.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---:|"]
        lines += [f"| {name} | {_number(value)} |" for name, value in table.items()]
    return "\n".join(lines) + "\n"


def write_comparison(figures: Tables, settings: Mapping[str, Any], output: Path) -> None:
    """Write ``OUTPUT.json`` and ``OUTPUT.md``: figures by variant, one table with a column for each.

    Args:
        figures: figures by name, by variant; all variants have the same.
        settings: what was compared on what.
        output: path without suffix.
    """
    content = {
        "settings": dict(settings),
        "results": {name: dict(column) for name, column in figures.items()},
    }
    text = json.dumps(content, indent=1, default=str) + "\n"
    write_atomically(output.with_name(f"{output.name}.json"), text.encode())
    columns = list(figures.values())
    lines = ["# Comparison", "", *(f"- {name}: `{value}`" for name, value in settings.items()), ""]
    lines += [f"| | {' | '.join(figures)} |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {row} | {' | '.join(_number(column[row]) for column in columns)} |" for row in columns[0]]
    write_atomically(output.with_name(f"{output.name}.md"), ("\n".join(lines) + "\n").encode())


def _one_line(value: object) -> str:
    return str(value).replace("\n", "\\n")


def _number(value: float) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if abs(value) >= 0.1 else f"{value:.4g}"
    )
