"""One look for every report: a page that needs nothing but itself, light and dark, on laptop and phone.

No scripts, no requests: a Content-Security-Policy in the page forbids both, should an escape ever be
forgotten. The functions here escape what they are given; only an `Html` is taken as markup.
"""

from collections.abc import Iterable, Sequence
from html import escape

from schemas.html_style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def markup(text: str) -> Html:
    """Text as markup: escaped, unless it is an `Html`."""
    return text if isinstance(text, Html) else Html(escape(text))


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; ``parts`` are markup, in order."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>",
            *parts,
            "</main></body></html>\n",
        ]
    )


def heading(title: str, line: str) -> Html:
    """What the page is about, and one line below it."""
    return Html(f'<header class="page"><h1>{markup(title)}</h1><p class="soft">{markup(line)}</p></header>')


def tiles(figures: Iterable[tuple[str, str]]) -> Html:
    """Figures that matter most: (value, what it is)."""
    cells = "".join(
        f'<div class="tile"><dd>{markup(value)}</dd><dt>{markup(name)}</dt></div>' for value, name in figures
    )
    return Html(f'<dl class="tiles">{cells}</dl>')


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, total: Sequence[str] = (), num_text: int = 1
) -> Html:
    """A table; the first ``num_text`` columns are text, the others figures."""
    body = "".join(_row("td", row, num_text) for row in rows)
    foot = f"<tfoot>{_row('td', total, num_text)}</tfoot>" if total else ""
    return Html(
        f'<div class="scroll" tabindex="0"><table><thead>{_row("th", head, num_text)}</thead>'
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def folded(summary: str, content: str) -> Html:
    """Content that opens on a click or a key."""
    return Html(f"<details><summary>{markup(summary)}</summary>{markup(content)}</details>")


def code_block(text: str) -> Html:
    """Text in a fixed-width font, its line breaks kept."""
    return Html(f'<pre class="code">{markup(text)}</pre>')


def bytes_text(number: int | None) -> str:
    """A size for people: ``614.4 kB``."""
    if number is None:
        return "unknown"
    value, units = float(number), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:,.0f} {units[0]}" if units[0] == "B" else f"{value:,.1f} {units[0]}"


def _row(tag: str, cells: Sequence[str], num_text: int) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    written = (
        f"<{tag}{scope}{'' if index < num_text else ' class=number'}>{markup(cell)}</{tag}>"
        for index, cell in enumerate(cells)
    )
    return f"<tr>{''.join(written)}</tr>"
