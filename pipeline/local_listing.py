"""Lists local folders of shards completely or not at all.

`os.walk` and `glob` pass over folders that cannot be read, and `os.walk` over folders behind symbolic links:
shards would be missing without a word. Here links are followed, a link back to a folder above itself is not,
and a folder that cannot be read is an error. Names that begin with a dot are passed over, as in a shell.
"""

import errno
import glob
import logging
import os
import re
import stat
from collections.abc import Iterator

from pipeline.sources.tar_reader import SHARD_SUFFIXES

logger = logging.getLogger(__name__)

_HAS_EFFECTIVE_IDS = os.access in os.supports_effective_ids
_ANY_DEPTH = re.compile(r"(?:^|(?<=/))\*\*(?:/+|$)")


def list_folder(folder: str) -> list[str]:
    """Paths of the entries of a folder without hidden ones, in no order.

    Raises:
        ValueError: naming the folder, if it cannot be read.
    """
    try:
        names = os.listdir(folder or os.curdir)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return [os.path.join(folder, name) for name in names if not name.startswith(".")]


_Identity = tuple[int, int]
"""Device and inode: the same folder by whatever path."""


def walk_folders(folder: str) -> Iterator[str]:
    """The folder and all folders under it, links followed; what is called like a shard is not entered.

    Raises:
        ValueError: naming the first folder that cannot be read.
    """
    above, parent = set[_Identity](), folder.rstrip("/")
    while (parent := os.path.dirname(parent)).strip("/"):
        above.add(_identity(parent))
    return _walk_below(folder, frozenset(above | {_identity(folder)}))


def _walk_below(folder: str, above: frozenset[_Identity]) -> Iterator[str]:
    yield folder
    for path in list_folder(folder):
        if path.lower().endswith(SHARD_SUFFIXES) or not _is_folder(path):
            continue
        if (identity := _identity(path)) in above:
            logger.warning("folder=%s leads back to a folder above it: not entered again", path)
        else:
            yield from _walk_below(path, above | {identity})


def _identity(folder: str) -> _Identity:
    try:
        status = os.stat(folder or os.curdir)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def glob_local(pattern: str) -> set[str]:
    """What `glob.glob` finds with ``recursive=True``, with links and errors as above.

    Raises:
        ValueError: naming the first folder that the pattern leads into and that cannot be read.
    """
    any_depth = _ANY_DEPTH.search(pattern)
    if any_depth is None:
        _check_readable(pattern)
        return set(glob.glob(pattern))
    base, rest = pattern[: any_depth.start()], pattern[any_depth.end() :]
    bases = glob_local(base) if glob.has_magic(base) else {base}
    found = set[str]()
    for folder in (folder for base in bases if _is_folder(base) for folder in walk_folders(base)):
        found |= glob_local(os.path.join(glob.escape(folder), rest)) if rest else set(list_folder(folder))
    return found


def _check_readable(pattern: str) -> None:
    """Look into each folder that the pattern leads into, from its first wildcard on."""
    parts = pattern.split("/")
    first = next((depth for depth, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    for depth in range(first, len(parts)):
        above = "/".join(parts[:depth]) + "/" if depth else ""
        for folder in filter(_is_folder, glob.glob(above) if above else [""]):
            if glob.has_magic(parts[depth]):
                list_folder(folder)
            if not os.access(folder or os.curdir, os.X_OK, effective_ids=_HAS_EFFECTIVE_IDS):
                raise _unreadable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path or os.curdir).st_mode)
    except FileNotFoundError:
        logger.warning("path=%s is a link to nothing: passed over", path)
        return False
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(folder: str, error: OSError) -> ValueError:
    return ValueError(
        f"--input {folder}: this folder cannot be read ({error.strerror}), so its shards would be missing: "
        "make it readable, or give a pattern that leaves it out"
    )
