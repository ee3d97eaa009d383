"""What the jobs share: a configuration from a YAML file and flags, log lines, signals, one-line errors."""

import contextlib
import dataclasses
import io
import logging
import signal
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, get_type_hints

import tyro
import yaml

Config = TypeVar("Config")
EXIT_FAILED = 1
EXIT_USAGE = 2


def parse_config(kind: type[Config], arguments: Sequence[str], description: str) -> Config:
    """A configuration from flags, with the values of ``--config FILE.yaml`` as defaults.

    Args:
        kind: a dataclass; its fields may be dataclasses.
        arguments: the command line.
        description: for --help.

    Raises:
        SystemExit: after --help.
        ValueError: a flag, a value or a key of the file is wrong.
    """
    arguments, path = _take_option(list(arguments), "--config")
    # The file's values come first, as flags, so that those of the command line win.
    flags = [] if path is None else _as_flags(_read_yaml(path), kind, f"--config {path}")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            text = f"{description}\n\n--config FILE.yaml gives any of these settings; flags go before it."
            return tyro.cli(kind, args=[*flags, *arguments], description=text, prog=Path(sys.argv[0]).name)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ValueError(_without_box(complaint.getvalue())) from None


def _take_option(arguments: list[str], option: str) -> tuple[list[str], str | None]:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[:index] + arguments[index + 2 :], arguments[index + 1]
        if argument.startswith(f"{option}="):
            return arguments[:index] + arguments[index + 1 :], argument.partition("=")[2]
    return arguments, None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must be a mapping of settings, got {type(values).__name__}")
    return values


def _as_flags(values: dict[str, Any], kind: type, where: str, prefix: str = "") -> list[str]:
    """Settings of a file as command-line flags; nested mappings as ``--section.field``."""
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(str(name) for name in values if name not in names):
        raise ValueError(f"{where}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(names))}")
    flags: list[str] = []
    for name, value in values.items():
        flag = f"--{prefix}{name}".replace("_", "-")
        if isinstance(value, dict) and dataclasses.is_dataclass(hints[name]):
            flags += _as_flags(value, hints[name], where, f"{prefix}{name}.")
        elif isinstance(value, bool):
            head, dot, last = flag.removeprefix("--").rpartition(".")
            flags.append(flag if value else f"--{head}{dot}no-{last}")
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is not None or isinstance(hints[name], types.UnionType):
            flags += [flag, str(value)]
    return flags


def _without_box(text: str) -> str:
    """The message that tyro draws a frame around, as one line."""
    lines = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    lines = [line for line in lines if line and not line.startswith(("─", "For full helptext"))]
    return " ".join(lines) or " ".join(text.split())


class StopSignal:
    """Set by SIGTERM or SIGINT; the second signal ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

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
    try:
        return main(sys.argv[1:])
    except errors as error:
        return _complain(error, EXIT_FAILED)
    except (ValueError, OSError) as error:
        return _complain(error, EXIT_USAGE)


def _complain(error: Exception, status: int) -> int:
    logging.getLogger(__name__).debug("where it came from", exc_info=error)
    print(f"error: {error}", file=sys.stderr)
    return status
