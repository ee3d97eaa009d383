"""An output folder on a local disk or in an object store, where files appear whole or not at all.

Local: write beside, fsync, rename (``schemas.atomic_write``). Object store: write to a local temporary
file, then one put; a put that did not finish leaves no object, so no rename is needed. An interrupted
multipart upload leaves invisible parts that a bucket's lifecycle rule should expire.

Names are relative to the folder, with ``/`` between parts. Names that start with ``.tmp-`` are unfinished
files of a running or killed writer and are never listed.
"""

import contextlib
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fsspec
import pyarrow.fs as pa_fs
from fsspec.core import url_to_fs

from schemas.atomic_write import (
    TEMPORARY_PREFIX,
    create_exclusively,
    flush_to_disk,
    temporary_path,
    write_atomically,
)

STALE_AFTER_S = 24 * 3600.0
"""Writers touch their temporary file at least every few minutes: one this old belongs to a dead writer."""


CONFLICT_CODES = frozenset({"ConditionalRequestConflict", "OperationAborted", "409"})
"""What S3 answers to a conditional put while another one to the same key is under way."""
MAX_CONFLICTS = 6
CONFLICT_PAUSE_S = 0.2
_OBJECT_PREFIX = "seed-shards-upload-"


class OutputDeniedError(PermissionError):
    """The output may not be written; no other file can be either."""


class StagedFile(ABC):
    """A file that is being written. As a context manager it vanishes unless it was committed."""

    path: Path

    @abstractmethod
    def commit(self, name: str | None = None) -> None:
        """Make it visible, whole, in one step; as ``name`` where that was not known from the beginning."""

    def touch(self) -> None:
        """Show that its writer is alive."""
        os.utime(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)


class _LocalStagedFile(StagedFile):
    def __init__(self, folder: Path, name: str) -> None:
        destination = folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = name
        self.path = temporary_path(destination)
        self.path.touch()

    def commit(self, name: str | None = None) -> None:
        destination = self._folder / (name or self._name)
        flush_to_disk(self.path)
        os.replace(self.path, destination)
        flush_to_disk(destination.parent)


class _ObjectStagedFile(StagedFile):
    def __init__(self, filesystem: fsspec.AbstractFileSystem, root: str, name: str) -> None:
        self._filesystem = filesystem
        self._root = root
        self._name = name
        descriptor, path = tempfile.mkstemp(prefix=f"{_OBJECT_PREFIX}{name.rsplit('/', 1)[-1]}-")
        os.close(descriptor)
        self.path = Path(path)

    def commit(self, name: str | None = None) -> None:
        key = f"{self._root}/{name or self._name}"
        with _denied_names(key):
            self._filesystem.put_file(str(self.path), key)


class Folder(ABC):
    """Where a job writes."""

    url: str

    @abstractmethod
    def names(self, subfolder: str = "") -> dict[str, int]:
        """Sizes in bytes of all files below ``subfolder``, by name from there, temporaries left out."""

    @abstractmethod
    def exists(self, name: str) -> bool: ...

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            FileNotFoundError: if there is none.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Replace a file in one step."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Create a file unless it exists; True if this call made it. Exactly one of several writers wins."""

    @abstractmethod
    def stage(self, name: str) -> "StagedFile":
        """A local file to write to that becomes ``name`` when it is committed."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    @abstractmethod
    def modified_s(self, name: str) -> float:
        """When a file was written, in seconds since 1970. Raises FileNotFoundError."""

    @abstractmethod
    def parquet_source(self, name: str) -> dict[str, Any]:
        """``source`` and ``filesystem`` arguments for the Parquet readers of ``schemas``."""

    def stale_temporaries(self, older_than_s: float = STALE_AFTER_S) -> list[str]:
        """Unfinished files that nobody has touched for ``older_than_s``. Object stores have none."""
        return []


class LocalFolder(Folder):
    """A directory of this machine, or of a network file system mounted on every node."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.url = str(path)

    def names(self, subfolder: str = "") -> dict[str, int]:
        root = self.path / subfolder
        found = {}
        for parent, _, files in os.walk(root):
            prefix = "" if parent == str(root) else os.path.relpath(parent, root).replace(os.sep, "/") + "/"
            for name in files:
                if not name.startswith(TEMPORARY_PREFIX):
                    with contextlib.suppress(FileNotFoundError):  # removed just now
                        found[prefix + name] = os.stat(os.path.join(parent, name)).st_size
        return found

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        write_atomically(self.path / name, data)

    def create(self, name: str, data: bytes) -> bool:
        return create_exclusively(self.path / name, data)

    def stage(self, name: str) -> StagedFile:
        return _LocalStagedFile(self.path, name)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def modified_s(self, name: str) -> float:
        return (self.path / name).stat().st_mtime

    def parquet_source(self, name: str) -> dict[str, Any]:
        return {"source": self.path / name, "filesystem": None}

    def stale_temporaries(self, older_than_s: float = STALE_AFTER_S) -> list[str]:
        limit = time.time() - older_than_s
        stale = []
        for path in self.path.glob(f"**/{TEMPORARY_PREFIX}*"):
            try:
                if path.stat().st_mtime < limit:
                    stale.append(path.relative_to(self.path).as_posix())
            except FileNotFoundError:  # its writer finished just now
                continue
        return stale


class ObjectFolder(Folder):
    """A prefix in an object store, through fsspec."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # A cached listing would hide what other writers commit meanwhile.
        self._filesystem, self._root = url_to_fs(self.url, use_listings_cache=False)
        self._is_tidy = False

    def names(self, subfolder: str = "") -> dict[str, int]:
        root = self._key(subfolder)
        entries = self._filesystem.find(root, detail=True)
        return {
            name[len(root) :].lstrip("/"): entry["size"]
            for name, entry in entries.items()
            if entry["type"] == "file" and name != root
        }

    def exists(self, name: str) -> bool:
        return bool(self._filesystem.exists(self._key(name)))

    def read(self, name: str) -> bytes:
        return bytes(self._filesystem.cat_file(self._key(name)))

    def write(self, name: str, data: bytes) -> None:
        with _denied_names(self._key(name)):
            self._filesystem.pipe_file(self._key(name), data)

    def create(self, name: str, data: bytes) -> bool:
        for _ in range(MAX_CONFLICTS):
            try:
                with _denied_names(self._key(name)):
                    self._filesystem.pipe_file(self._key(name), data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if not _is_conflict(error):
                    raise
            if self.exists(name):
                return False
            time.sleep(CONFLICT_PAUSE_S)
        raise OSError(f"{self._key(name)}: others create it all the time, and it is never there; try again")

    def stage(self, name: str) -> StagedFile:
        if not self._is_tidy:
            self._is_tidy = True
            _remove_old_uploads()
        return _ObjectStagedFile(self._filesystem, self._root, name)

    def remove(self, name: str) -> None:
        if self.exists(name):
            self._filesystem.rm_file(self._key(name))

    def modified_s(self, name: str) -> float:
        return float(self._filesystem.modified(self._key(name)).timestamp())

    def parquet_source(self, name: str) -> dict[str, Any]:
        filesystem = pa_fs.PyFileSystem(pa_fs.FSSpecHandler(self._filesystem))
        return {"source": self._key(name), "filesystem": filesystem}

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")


@contextlib.contextmanager
def _denied_names(key: str) -> Iterator[None]:
    """A store's refusal says neither what was refused nor that it was an output."""
    try:
        yield
    except PermissionError as error:
        raise OutputDeniedError(f"{key}: may not be written: {error}") from error


def _is_conflict(error: OSError) -> bool:
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in CONFLICT_CODES


def _remove_old_uploads() -> None:
    """Remove files that killed writers to object stores left in the temporary folder of this machine."""
    limit = time.time() - STALE_AFTER_S
    for path in Path(tempfile.gettempdir()).glob(f"{_OBJECT_PREFIX}*"):
        with contextlib.suppress(OSError):  # of another user, or removed just now
            if path.stat().st_mtime < limit:
                path.unlink()


def open_folder(url: str) -> Folder:
    """The folder at a local path, ``file://`` URL or fsspec URL (``s3://bucket/prefix``); nothing is made.

    Raises:
        ValueError: if it is empty, or no installed file system speaks the URL's protocol.
    """
    if not url.strip():
        raise ValueError("the name of the folder is empty; name a folder, or . for the current one")
    protocol, separator, rest = url.partition("://")
    if not separator or protocol == "file":
        path = Path(rest if separator else url)
        if path.exists() and not path.is_dir():
            raise ValueError(f"{url}: is a file; name a folder")
        return LocalFolder(path)
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise ValueError(f"output {url}: {error}") from error
    return ObjectFolder(url)
