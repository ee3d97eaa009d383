"""The folder of an export shows a whole model or none, whenever its writer is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.atomic_write import flush_to_disk

_PARTIAL = ".partial"
_CONFIGS = ("config.json", "adapter_config.json")
"""Without these no program loads a model or an adapter."""
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


@contextmanager
def whole_export(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files replace the export in ``folder`` when the block ends.

    Until then a former export stays as it is. Then its configuration goes first and the new one comes last.
    Files of others in ``folder`` are left alone.

    Args:
        folder: made when missing.
    """
    partial = folder / _PARTIAL
    if partial.exists():  # of a killed writer
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in filter(Path.is_file, partial.rglob("*")):
            flush_to_disk(path)
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial)


def _replace(partial: Path, folder: Path) -> None:
    """Move all files of ``partial`` to their places; weights of a former export do not stay."""
    for name in _CONFIGS:
        (folder / name).unlink(missing_ok=True)
    flush_to_disk(folder)
    for pattern in _WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()
    for path in sorted(partial.iterdir(), key=lambda path: path.name in _CONFIGS):
        place = folder / path.name
        if path.is_dir():
            place.mkdir(exist_ok=True)
            _replace(path, place)
        else:
            os.replace(path, place)
    flush_to_disk(folder)
