"""Errors of tyro, which draws them into a frame of many lines, as one line."""

import contextlib
import io
import re
from collections.abc import Iterator

from pipeline.closed_pipe import until_reader_leaves

_RULE = re.compile(r"^ *(?:─{3,}|-{3,}) *$", re.MULTILINE)
"""Between the parts of a message."""
_SUGGESTED_FLAG = re.compile(r"^(\W*?)(--?\w[\w.-]*)", re.MULTILINE)
"""Its help text stands below, further to the right."""


@contextlib.contextmanager
def in_one_line(where: str = "") -> Iterator[None]:
    """Around a call of tyro that only reads a command line: whatever is wrong becomes a ValueError.

    Args:
        where: what its message begins with.

    Raises:
        SystemExit: after --help.
        ValueError: a flag or a value is wrong.
    """
    complaint = io.StringIO()
    with until_reader_leaves():  # `--help | head`
        try:
            with contextlib.redirect_stderr(complaint):
                yield
        except SystemExit as end:
            if end.code in (0, None):
                raise
            raise ValueError(where + _without_box(complaint.getvalue())) from None


def _without_box(text: str) -> str:
    """The message in a frame as one line: its parts, without that about --help and a class of ours."""
    framed = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    parts = [" ".join(part.split()) for part in _RULE.split("\n".join(framed) or text)]
    if not framed and len(parts) > 1:  # a terminal of ASCII: there is no frame, and the title is a part
        del parts[0]
    said = "; ".join(part for part in parts if part and not part.startswith("For full"))
    said = re.sub(r"^Error parsing \w+: ", "", said)
    before, suggests, _ = said.partition("; Perhaps you meant: ")
    found = _SUGGESTED_FLAG.findall(text.partition("Perhaps you meant:")[2])
    flags = [flag for indent, flag in found if indent == found[0][0]]
    return f"{before}; did you mean {' or '.join(flags)}?" if suggests and flags else said
