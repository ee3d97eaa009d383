"""Whose an output folder is: a manifest that is created exclusively, and compared from then on.

Shards are named by their place in the input. A folder that two inputs, or two ways to split one, wrote into
would hold some documents twice and others not at all.
"""

import json
from pathlib import Path
from typing import Any

from schemas.atomic_write import create_exclusively


def claim_output(path: Path, manifest: dict[str, Any]) -> None:
    """Make the manifest, or check that the one there says the same. Of several at once exactly one makes it.

    Args:
        path: the manifest inside the folder that it claims.
        manifest: what the names of the shards depend on; JSON.

    Raises:
        ValueError: saying what differs, and what to do.
    """
    create_exclusively(path, json.dumps(manifest, indent=1).encode() + b"\n")
    try:
        existing = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON: {error}; choose another output folder") from error
    if not isinstance(existing, dict):
        raise ValueError(f"{path}: must be an object; choose another output folder")
    wanted = json.loads(json.dumps(manifest))
    differing = [
        f"{name}: {_difference(existing.get(name), wanted[name])}"
        for name in sorted(wanted)
        if existing.get(name) != wanted[name]
    ]
    if differing:
        raise ValueError(
            f"--output {path.parent}: was made from another list or with other settings"
            f" ({'; '.join(differing)}); repeat those or choose another folder"
        )


def _difference(there: Any, now: Any) -> str:
    """The two values; of lists the number of entries and the first that is not the same."""
    if not isinstance(there, list) or not isinstance(now, list):
        return f"{_shown(there)} there, {_shown(now)} now"
    for before, after in zip(there, now, strict=False):
        if before != after:
            return f"{_shown(before)} there, {_shown(after)} now"
    return f"{len(there)} there, {len(now)} now"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:120]
