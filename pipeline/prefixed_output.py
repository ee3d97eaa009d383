"""What a library prints, on stderr with the library's name before each line: stdout is for our results."""

import sys
import threading
from io import TextIOBase


class PrefixedOutput(TextIOBase):
    """Takes the place of ``sys.stdout``; threads do not cut into each other's lines.

    Args:
        prefix: put before each line.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._begun = threading.local()  # `print` writes a line and its end separately

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        *lines, self._begun.line = (getattr(self._begun, "line", "") + text).split("\n")
        if lines:
            sys.stderr.write("".join(f"{self._prefix}{line}\n" for line in lines))
        return len(text)
