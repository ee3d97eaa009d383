"""docs/troubleshooting.md quotes messages and reasons that the code really has."""

import ast
import re

from schemas.quarantine import Reason
from tests.docs.fences import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PACKAGES = ("schemas", "tokenizer", "pipeline", "trainer", "jobs")


def texts_of_the_code() -> str:
    """All string constants, the fixed parts of f-strings among them; what stands between is an ellipsis."""
    parts = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    values = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    parts.append("".join(values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts.append(node.value)
    return "\n".join(" ".join(part.split()) for part in parts)


def test_quoted_messages_are_messages_of_the_code() -> None:
    code = texts_of_the_code()
    quotes = re.findall(r"^> (.*)$", PAGE, re.MULTILINE)
    assert len(quotes) > 10
    missing = [
        part.strip()
        for quote in quotes
        for part in quote.split("…")
        if len(part.strip()) > 3 and part.strip() not in code
    ]
    assert missing == []


def test_named_reasons_are_reasons() -> None:
    titles = re.findall(r"^### .*$", PAGE, re.MULTILINE)
    named = {name for title in titles for name in re.findall(r"`([a-z]+_[a-z_]+)`", title)}
    assert len(named) > 5
    assert named <= set(Reason)
