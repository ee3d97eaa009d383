"""The folder that a build writes to: it holds this mixture's build, begun or complete, or nothing."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.packing.build_report import REPORT_NAME
from pipeline.packing.mixture_file import Mixture
from schemas.atomic_write import write_atomically
from schemas.packed_shard import FILE_PATTERN

logger = logging.getLogger(__name__)

WORK_FOLDER = ".build"
"""What stages leave for the next ones; removed when the packed shards are complete."""


class BuildError(ValueError):
    """An output folder cannot be used; the message says why and what to do."""


def find_finished(output: Path, mixture: Mixture) -> dict[str, Any] | None:
    """The report of a complete build of this mixture, None if there is none.

    Raises:
        BuildError: if another mixture was built here.
    """
    path = output / REPORT_NAME
    if not path.exists():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
        built, components = report["mixture"], report["components"]
    except (ValueError, TypeError, KeyError) as error:
        raise BuildError(f"{path} is not of seed-pack build; use another folder") from error
    if built != mixture.identity():
        raise BuildError(_differences(output, components, mixture.components))
    shutil.rmtree(output / WORK_FOLDER, ignore_errors=True)  # of a build that was killed while it cleaned up
    logger.info("output=%s is complete, nothing to do", output)
    return report


def claim_folder(output: Path, mixture: Mixture) -> None:
    """Begin a build of this mixture here, or go on with one.

    Raises:
        BuildError: if the folder is none, cannot be written, or holds something else or the beginning of
            another build.
    """
    if output.exists() and not output.is_dir():
        raise BuildError(f"{output}: is no folder; name another output")
    marker = output / WORK_FOLDER / "mixture.json"
    components = mixture.components
    if marker.exists():
        started = json.loads(marker.read_bytes())
        if started != components:
            raise BuildError(_differences(output, started, components))
        return
    if present := sorted(output.glob(FILE_PATTERN)):
        raise BuildError(f"{output}: holds {present[0].name} of an unknown build; use another folder")
    if foreign := sorted(path.name for path in output.glob("*") if not path.name.startswith(".")):
        raise BuildError(
            f"{output}: holds {len(foreign)} other files ({', '.join(foreign[:3])}); packed shards want a "
            "folder of their own"
        )
    try:
        write_atomically(marker, json.dumps(components, indent=1).encode())
    except OSError as error:
        reason = error.strerror or error
        raise BuildError(f"--output {output}: cannot be written: {reason}; choose another folder") from error


def _differences(output: Path, before: Any, now: Any) -> str:
    ours, theirs = dict(_flatten(now)), dict(_flatten(before))
    changed = [
        f"{name}: {theirs.get(name, '(absent)')} there, {ours.get(name, '(absent)')} now"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    listed = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
    return f"{output}: holds another build ({listed}); use another folder, or remove this one"


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in pairs:
            yield from _flatten(item, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
