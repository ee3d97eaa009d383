"""Output into a pipe whose reader has left (``... | head``): no error of ours, and nobody is left to tell."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CLOSED_PIPE = 128 + signal.SIGPIPE
"""What a shell shows for a program that such a pipe ended, as it ends most."""


@contextmanager
def until_reader_leaves() -> Iterator[None]:
    """Around all of a command: it ends silently where nobody reads its standard output any more.

    Raises:
        SystemExit: with ``EXIT_CLOSED_PIPE``, then.
        BrokenPipeError: of anything else that was written to.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not stdout_has_no_reader():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        sys.exit(EXIT_CLOSED_PIPE)


def stdout_has_no_reader() -> bool:
    """Whether standard output is a pipe without a reader."""
    try:
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0))
    except (OSError, ValueError):  # it is no file at all
        return False
