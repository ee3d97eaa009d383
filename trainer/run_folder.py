"""The folder of a training run is its own: nothing of a model or of another program is written over."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.atomic_write import TEMPORARY_PREFIX
from schemas.differences import flatten

_BEFORE_A_RUN = (".lock", "ray")
"""What may be there before a run has written its configuration: our lock, and what Ray Train keeps."""


def check_run_folder(output: Path) -> None:
    """Raise ValueError if ``output`` holds anything that no run of ours wrote, or cannot be written."""
    try:
        _probe(output)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--output {output}: cannot be written: {reason}; choose another folder") from error
    config = output / "config.json"
    if config.is_file():
        try:
            fields = json.loads(config.read_text(encoding="utf-8"))
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or "num_steps" not in fields:
            raise ValueError(
                f"--output {output}: its config.json is not a training run's; give another folder"
            )
    elif foreign := _foreign(output):
        more = f" (one of {len(foreign):,})" if len(foreign) > 1 else ""
        raise ValueError(
            f"--output {output}: its {foreign[0]}{more} is not a training run's; give another folder, a new "
            "or empty one"
        )


def changed_settings(output: Path, config: Mapping[str, Any]) -> list[str]:
    """What a run that goes on in ``output`` does differently from its last start, a line for each setting.

    Args:
        output: holds the former configuration, unless it was lost.
        config: of the run now. A setting that only one of both releases has is no change.
    """
    path = output / "config.json"
    if not path.is_file():
        return []
    before = flatten(json.loads(path.read_text(encoding="utf-8")))
    now = flatten(json.loads(json.dumps(config)))
    return [
        f"{name}: {now[name]!r} instead of {before[name]!r}"
        for name in now
        if name in before and name != "output" and now[name] != before[name]
    ]


def _probe(output: Path) -> None:
    """Make and remove a folder in ``output``, or where that will be made."""
    place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=place):
        pass


def _foreign(output: Path) -> list[str]:
    """Names in a folder without a configuration, but for those of a run about to begin."""
    if not output.is_dir():
        return []
    return sorted(path.name for path in output.iterdir() if not _is_of_a_run(path))


def _is_of_a_run(path: Path) -> bool:
    """Ours, or checkpoints that were copied to go on from them."""
    if path.name == "checkpoints":
        return any(path.glob("step-*/progress.json"))
    return path.name in _BEFORE_A_RUN or path.name.startswith(TEMPORARY_PREFIX)
