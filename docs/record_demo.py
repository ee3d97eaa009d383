"""Draws what `make demo` printed as a terminal, for the README.

FORCE_COLOR=1 make demo > demo.log 2>&1; python docs/record_demo.py demo.log docs/demo.svg

Lines are taken as they are; left out are the log's repetitions and long bodies, which an ellipsis stands for.
"""

import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

WIDTH = 118
MAX_BODY = 6
"""Lines of a command's output that are shown."""
FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
"""Fetched from another host; the reader's own monospaced font serves."""
NOISE = re.compile(
    r"^(\d\d:\d\d:\d\d INFO|stage=|settings|tokenizer |format_version|fingerprint)|  metadata "
)


def chosen(lines: list[str]) -> list[Text]:
    """Commands, and the first lines of what each printed; of the training the first and the last steps."""
    shown: list[Text] = []
    body: list[str] = []

    def flush() -> None:
        kept = [line for line in body if line.strip() and not NOISE.search(line)]
        steps = [line for line in kept if re.search(r" step=\d+ loss", line)]
        if steps:
            kept = [steps[0], "...", *steps[-1:], *kept[kept.index(steps[-1]) + 1 :]]
        if len(kept) > MAX_BODY:
            kept = [*kept[:MAX_BODY], "..."]
        shown.extend(Text.from_ansi(line) for line in kept)
        body.clear()

    for line in lines:
        command = re.match(r"(?:\S*/bin/)((?:python|seed-\w+) .*)", line)
        if command:
            flush()
            shown.append(Text(f"$ {command[1]}", style="bold green"))
        else:
            body.append(line)
    flush()
    return shown


def main(log: Path, picture: Path) -> None:
    console = Console(record=True, width=WIDTH, file=open("/dev/null", "w"))  # noqa: SIM115
    for text in chosen(log.read_text(encoding="utf-8").splitlines()):
        text.truncate(WIDTH - 1, overflow="ellipsis")
        console.print(text, highlight=False)
    picture.write_text(
        console.export_svg(title="make demo", code_format=FONTS.sub("", CONSOLE_SVG_FORMAT)), encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
