"""What differs between two nested mappings, as lines for people."""

from collections.abc import Mapping
from typing import Any

MAX_DIFFERENCES_SHOWN = 3
"""Of one entry at the top level; of the others the number."""


def flatten(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The innermost values by their path, ``outer.inner``; lists are values."""
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """One line for each value that differs, ours first; no more than three for one entry at the top level."""
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = (flatten({name: side[name]}) if name in side else {} for side in (ours, theirs))
        different = [
            f"{path}: {here.get(path, '(absent)')} here, {there.get(path, '(absent)')} there"
            for path in sorted(here.keys() | there.keys())
            if here.get(path) != there.get(path)
        ]
        hidden = len(different) - MAX_DIFFERENCES_SHOWN
        lines += different[:MAX_DIFFERENCES_SHOWN]
        lines += [f"{name}: {hidden} more differences"] if hidden > 0 else []
    return lines
