"""Files appear whole or not at all.

Write beside the destination, flush to disk, rename, flush the directory: after a crash at any moment the
destination holds either nothing, or the old content, or the new one. Names that start with ``.tmp-`` are
the unfinished ones; readers and listings pass over them.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def atomic_path(destination: Path) -> Iterator[Path]:
    """A temporary path beside ``destination`` that replaces it when the block ends without an error.

    The file is removed if the block raises. Parent folders are made.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(destination)
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, destination)
        flush_to_disk(destination.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(destination: Path, data: bytes) -> None:
    """Replace ``destination`` by ``data`` in one step."""
    with atomic_path(destination) as temporary:
        temporary.write_bytes(data)


def create_exclusively(destination: Path, data: bytes) -> bool:
    """Create ``destination`` with ``data`` unless it exists; True if this call made it.

    Of several processes that try at once exactly one succeeds, and none ever sees half the content.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(destination)
    try:
        temporary.write_bytes(data)
        flush_to_disk(temporary)
        os.link(temporary, destination)  # fails if it exists, unlike rename
        flush_to_disk(destination.parent)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def temporary_path(destination: Path) -> Path:
    """A name beside ``destination`` that no listing shows and no other writer uses."""
    return destination.with_name(f"{TEMPORARY_PREFIX}{destination.name}-{uuid.uuid4().hex[:8]}")


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the entries of a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
