"""What the jobs share: a configuration from a YAML file and flags, log lines, signals, one-line errors."""

import dataclasses
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import tyro
import yaml

Config = TypeVar("Config")
EXIT_FAILED = 1
EXIT_USAGE = 2


def parse_config(kind: type[Config], arguments: Sequence[str], description: str) -> Config:
    """A configuration from flags, with the values of ``--config FILE.yaml`` as defaults.

    Raises:
        SystemExit: after --help, or with one line for an unknown flag.
        ValueError: a value or a key of the file is wrong.
    """
    arguments, path = _take_option(list(arguments), "--config")
    defaults = _read_yaml(path, kind) if path else {}
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    given = {name for name in required if f"--{name.replace('_', '-')}" in arguments}
    if required <= defaults.keys() | given or not defaults:
        default = _defaults(kind, defaults, required) if defaults else None
        return tyro.cli(kind, args=arguments, description=description, default=default)
    missing = ", ".join(f"--{name}" for name in sorted(required - defaults.keys() - given))
    raise ValueError(f"missing: {missing}")


def _defaults(kind: type[Config], values: dict[str, Any], required: set[str]) -> Config:
    return kind(**dict.fromkeys(required, tyro.MISSING) | values)


def _take_option(arguments: list[str], option: str) -> tuple[list[str], str | None]:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[:index] + arguments[index + 2 :], arguments[index + 1]
        if argument.startswith(f"{option}="):
            return arguments[:index] + arguments[index + 1 :], argument.partition("=")[2]
    return arguments, None


def _read_yaml(path: str, kind: type) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: cannot be read: {error}") from error
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(values, dict) or not names.issuperset(values):
        unknown = sorted(map(str, set(values) - names)) if isinstance(values, dict) else ["no mapping"]
        raise ValueError(
            f"--config {path}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(names))}"
        )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


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
