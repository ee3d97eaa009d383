"""Run configurations: a tree of frozen dataclasses from one YAML file; flags override every field."""

import dataclasses
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from jobs.command_line import unreadable
from pipeline.one_line_errors import in_one_line
from pipeline.strict_yaml import read_yaml
from schemas.settings import suggestion

Config = TypeVar("Config")


def parse_config(kind: type[Config], arguments: Sequence[str] | None = None, description: str = "") -> Config:
    """A configuration from flags, with the values of ``--config FILE.yaml`` as defaults.

    Args:
        kind: a dataclass; its fields may be dataclasses.
        arguments: the command line; that of the process if left out.
        description: for --help.

    Raises:
        SystemExit: after --help.
        ValueError: a flag, a value or a key of the file is wrong.
    """
    arguments, path = _take_option(list(sys.argv[1:] if arguments is None else arguments), "--config")
    # The file's values come first, as flags, so that those of the command line win.
    flags = [] if path is None else _as_flags(_read_yaml(path), kind, f"--config {path}")
    text = f"{description}\n\n--config FILE.yaml gives any of these settings; flags win over it."
    with in_one_line("" if path is None else f"with --config {path}: "):
        return tyro.cli(kind, args=[*flags, *arguments], description=text, prog=Path(sys.argv[0]).name)


def _take_option(arguments: list[str], option: str) -> tuple[list[str], str | None]:
    for index, argument in enumerate(arguments):
        if argument == option:
            if index + 1 == len(arguments):
                raise ValueError(f"{option} needs a file behind it")
            return arguments[:index] + arguments[index + 2 :], arguments[index + 1]
        if argument.startswith(f"{option}="):
            return arguments[:index] + arguments[index + 1 :], argument.partition("=")[2]
    return arguments, None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = read_yaml(Path(path))
    except OSError as error:
        raise unreadable("--config", path, error) from error
    except ValueError as error:
        raise ValueError(f"--config {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must be a mapping of settings, got {type(values).__name__}")
    return values


def _as_flags(values: dict[str, Any], kind: type, where: str, prefix: str = "") -> list[str]:
    """Settings of a file as command-line flags; nested mappings as ``--section.field``."""
    hints = typing.get_type_hints(kind)
    names = sorted(field.name for field in dataclasses.fields(kind))
    for name in values:
        if name not in names:
            raise ValueError(f"{where}: {prefix}{name}: unknown setting{suggestion(str(name), names)}")
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
