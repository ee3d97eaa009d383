"""One training run in a folder at a time: a lock that ends with the process that holds it."""

import errno
import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_WAIT_S, _WAIT_FOR_HOST_S = 10.0, 120.0
"""For a process that was just killed to be gone, here or, as the file server notices it, on another host."""


@contextmanager
def run_lock(folder: Path, wait_s: float | None = None) -> Iterator[None]:
    """Have the run folder to ourselves; every rank of the run calls this, the first holds the lock.

    Args:
        folder: made when missing, and removed again where the run ended, over its settings say, before it
            wrote anything.
        wait_s: for another run to let go; by where it runs when None.

    Raises:
        ValueError: on every rank, where another run is at work in ``folder``.
    """
    descriptor, refusal = _lock(folder, wait_s) if dist.get_rank() == 0 else (None, "")
    try:
        box = [refusal]
        dist.broadcast_object_list(box, src=0)
        if box[0]:
            raise ValueError(box[0])
        yield
    finally:
        if descriptor is not None:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            os.close(descriptor)
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _lock(folder: Path, wait_s: float | None) -> tuple[int | None, str]:
    """The open lock file, or why there is none; neither where the file system has no locks."""
    path = folder / LOCK_FILE
    started = time.monotonic()
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                logger.warning("%s cannot be locked (%s): start no second run in this folder", path, error)
                return None, ""
            limit_s = (_WAIT_S if _is_here(holder) else _WAIT_FOR_HOST_S) if wait_s is None else wait_s
            if time.monotonic() - started > limit_s:
                return None, (
                    f"--output {folder}: another run is at work in it ({holder}); wait for it, stop it, or "
                    "choose another output folder"
                )
            time.sleep(0.2)
            continue
        if _is_same_file(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
            return descriptor, ""
        os.close(descriptor)  # its holder has just removed it


def _is_here(holder: str) -> bool:
    return holder.endswith(f" on {platform.node()}")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
