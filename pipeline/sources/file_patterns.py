"""Globs and folders of files that are no tars (Parquet, JSON lines), as literal paths for `inputs`."""

import glob
import os
from collections.abc import Sequence

from pipeline.inputs import natural_key
from pipeline.source_stream import is_local


def literal_files(patterns: Sequence[str], suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns, with local folders and wildcards replaced by the files of these kinds that they match.

    Braces, ``@lists`` and URLs are left to `inputs.expand_inputs`, which also refuses what does not exist.

    Raises:
        ValueError: if a folder or wildcard matches no such file.
    """
    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("@") or not is_local(pattern) or "{" in pattern:
            found.append(pattern)
        elif os.path.isdir(pattern):
            found += _matches(os.path.join(glob.escape(pattern), "*"), suffixes, pattern)
        elif glob.has_magic(pattern) and not os.path.exists(pattern):
            found += _matches(pattern, suffixes, pattern)
        else:
            found.append(pattern)
    return tuple(found)


def _matches(pattern: str, suffixes: tuple[str, ...], named: str) -> list[str]:
    paths = [path for path in glob.glob(pattern, recursive=True) if path.lower().endswith(suffixes)]
    if not paths:
        raise ValueError(f"--input {named}: no {', '.join(suffixes)} file found")
    return sorted(paths, key=natural_key)
