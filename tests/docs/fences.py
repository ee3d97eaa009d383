"""Fenced blocks of the documentation, and the shell commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "samples" / "README.md",
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "sh", "")


@dataclass(frozen=True)
class Fence:
    """One block between two lines of three backticks."""

    page: Path
    line: int
    """Of its first line of content, from 1."""
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences(page: Path) -> list[Fence]:
    text = page.read_text(encoding="utf-8")
    return [
        Fence(page, text.count("\n", 0, match.start()) + 2, match[1], match[2])
        for match in _FENCE.finditer(text)
    ]


def section(page: Path, title: str) -> list[Fence]:
    """The blocks of one ``## title``."""
    lines = page.read_text(encoding="utf-8").splitlines()
    first = lines.index(f"## {title}") + 1
    end = next((i for i in range(first, len(lines)) if lines[i].startswith("## ")), len(lines))
    return [fence for fence in fences(page) if first < fence.line <= end]


def shell_lines(text: str) -> list[str]:
    """Commands of a block: continued lines joined, blank lines and comments left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [
        line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]


def words(line: str) -> list[str]:
    """A command line as a shell splits it, without its comment."""
    return shlex.split(line, comments=True)
