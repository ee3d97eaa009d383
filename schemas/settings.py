"""Settings as frozen dataclasses, from the nested mappings of a file: strictly, with the remedy in errors.

An unknown key is an error that suggests the nearest known one; a value of another type is an error, too.
Mixture files, the settings of templates and parts of recipes are read by this.
"""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it, its value and the remedy."""


def parse_settings(kind: type[Config], value: Any, where: str = "") -> Config:
    """Build a frozen dataclass from nested mappings, lists and scalars.

    Raises:
        SettingsError: on an unknown or missing key, a value of the wrong type, or one that the class refuses;
            the message begins with the path of the setting.
    """
    if not isinstance(value, Mapping):
        found = "nothing" if value is None else repr(value)
        raise SettingsError(f"{where.rstrip('.') or 'settings'}: expected names and values, found {found}")
    hints = typing.get_type_hints(kind)
    known: dict[str, Field[Any]] = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    arguments = {}
    for key, item in value.items():
        if key not in known:
            raise SettingsError(f"{where}{key}: unknown setting{suggestion(str(key), known)}")
        arguments[key] = _convert(hints[key], item, f"{where}{key}")
    missing = [
        name
        for name, item in known.items()
        if name not in arguments and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise SettingsError(f"{where or 'settings: '}missing {', '.join(missing)}")
    try:
        return kind(**arguments)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"{where.rstrip('.') or 'settings'}: {error}") from error


def suggestion(key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown key: the nearest known one, or all."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint`` asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise SettingsError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return parse_settings(hint, value, f"{where}.")
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise SettingsError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is not None or hint is Any:
        return value
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError as error:
            raise SettingsError(f"{where}: expected a number, got {value!r}") from error
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    try:
        if issubclass(hint, str) and isinstance(value, str):
            return hint(value)  # an enumeration
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from error
    raise SettingsError(f"{where}: expected {hint.__name__}, got {value!r}")
