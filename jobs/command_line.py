"""What the jobs share: log lines, signals, one-line errors."""

import difflib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from pipeline.closed_pipe import stdout_has_no_reader, until_reader_leaves

EXIT_FAILED, EXIT_USAGE = 1, 2
EXIT_STOPPED = 128 + signal.SIGTERM
"""A run that saved what it had when it was asked to end; the same command goes on."""


class StopSignal:
    """Set by SIGTERM or SIGINT within its `with` block; the second signal ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def is_set(self) -> bool:
        return self.received is not None

    @property
    def exit_status(self) -> int:
        """What a shell shows for a process that the signal ended."""
        return 128 + (self.received or 0)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            sys.exit(128 + number)
        self.received = number


def run_job(main: Callable[[Sequence[str]], int], errors: tuple[type[Exception], ...] = ()) -> int:
    """Call a job with the command line; errors of the user end in one line and status 2, not a traceback.

    Args:
        main: takes the arguments, returns the exit status.
        errors: errors of a run that began, which end in one line and status 1.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    with until_reader_leaves():
        try:
            return main(sys.argv[1:])
        except errors as error:
            return _complain(error, EXIT_FAILED)
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError) and stdout_has_no_reader():
                raise
            return _complain(error, EXIT_USAGE)


def _complain(error: Exception, status: int) -> int:
    logging.getLogger(__name__).debug("where it came from", exc_info=error)
    print(f"error: {error}", file=sys.stderr)
    return status


def unreadable(flag: str, path: str, error: OSError) -> ValueError:
    """The error of a file that a flag names: why it cannot be read, and the nearest name beside it."""
    folder = Path(path).parent
    beside = [item.name for item in folder.iterdir()] if folder.is_dir() else []
    close = difflib.get_close_matches(Path(path).name, beside, n=1) if not Path(path).exists() else []
    hint = f"; did you mean {folder / close[0]}?" if close else ""
    return ValueError(f"{flag} {path}: cannot be read: {error.strerror or error}{hint}")
