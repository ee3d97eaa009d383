"""Run configurations: a tree of frozen dataclasses from one YAML file; flags override every field."""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

Config = TypeVar("Config")


def parse_config(config_type: type[Config], argv: list[str] | None = None, description: str = "") -> Config:
    """Config from ``--config FILE.yaml`` (may be left out) and ``--section.field value`` overrides.

    Raises:
        ValueError: the file has an entry that the configuration does not know, or a value out of range.
        SystemExit: the command line does not parse, or asks for help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    path = None
    if "--config" in arguments:
        place = arguments.index("--config")
        path = Path(arguments[place + 1])
        del arguments[place : place + 2]
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    try:
        default = from_entries(config_type, entries or {})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return tyro.cli(config_type, args=arguments, default=default, description=description or None)


def from_entries(config_type: type[Config], entries: Mapping[str, Any], where: str = "") -> Config:
    """A dataclass tree from nested mappings; unknown names are errors that name their place.

    Raises:
        ValueError: a name is unknown; whatever a ``__post_init__`` refuses.
    """
    hints = typing.get_type_hints(config_type)
    unknown = sorted(entries.keys() - hints.keys())
    if unknown:
        raise ValueError(f"unknown entries {unknown} in {where or 'the file'}; known are {sorted(hints)}")
    values = {
        name: _value(hints[name], value, f"{where}.{name}".strip(".")) for name, value in entries.items()
    }
    return config_type(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    """A value of the file as the field wants it: sections, tuples, paths, floats written like 1e-3."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_entries(typing.cast(type[Any], option), value, where)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return tuple(_value(typing.get_args(option)[0], item, where) for item in value)
    if Path in options and isinstance(value, str):
        return Path(value)
    if float in options and isinstance(value, int | str) and not isinstance(value, bool):
        return float(value)
    return value
