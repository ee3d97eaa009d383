"""YAML files as users write them, read without guessing: a key that stands twice is an error."""

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: one line that begins with the file, if it is no YAML or a key stands twice.
        OSError: if it cannot be read.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}{_place(error)}: not YAML: {_problem(error)}") from error


def _place(error: Exception) -> str:
    """Where in the file, as far as the error knows."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    return "" if mark is None else f" line {mark.line + 1} column {mark.column + 1}"


def _problem(error: Exception) -> str:
    """What is wrong, without the excerpt that takes yaml's own message several lines."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    return f"{error.problem} {error.context}" if error.context else str(error.problem)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
