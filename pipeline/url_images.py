"""Downloaded pictures by their URL: an index over a folder of shards that `ingest` or img2dataset made.

The index is one SQLite file beside the shards: for each URL the place of its picture (shard, offset, size) or
why there is none. It is built once, from the tables and tar headers of the shards, put in place whole, and
then read by any number of processes; memory does not grow with the number of pictures.
"""

import contextlib
import os
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import pyarrow.parquet as pq

from schemas.atomic_write import atomic_path

INDEX_NAME = "url_images.sqlite"
_TEXT_SUFFIXES = ("json", "txt")
_Row = tuple[str, str | None, int, int, str]
"""URL, file or None, offset, size, suffix of the picture or error message."""
_Source = tuple[str, int, int]
"""Name, size in bytes, time of the last change in ns."""


def build_index(folder: Path) -> Path:
    """Make the index of a folder, or make it anew where its shards are not those that it was made of.

    The index says name, size and time of each file that it was made of, so that a shard that came with its
    old time (``cp -p``, rsync), was replaced or was removed is noticed.

    The folder holds ``NNNNN.parquet`` (columns url, key, status, error_message), and beside each either
    ``NNNNN.tar`` or, as img2dataset's format ``files`` has it, a folder ``NNNNN/``. Of rows with the same URL
    the first with a picture counts; those without a URL are passed over.

    Raises:
        ValueError: naming the folder, if there is nothing of this kind in it.
    """
    tables = sorted(folder.glob("*.parquet"))
    if not tables:
        raise ValueError(
            f"{folder}: no NNNNN.parquet with the columns url, key and status: not made by ingestion"
        )
    index = folder / INDEX_NAME
    sources = _sources(folder, tables)
    if index.exists() and _indexed_sources(index) == sources:
        return index
    with atomic_path(index) as temporary:
        connection = sqlite3.connect(temporary)
        connection.execute("PRAGMA journal_mode = OFF")  # the file is new, and put in place whole
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE images (url TEXT PRIMARY KEY, file TEXT, offset INT, size INT, note TEXT)"
            " WITHOUT ROWID"
        )
        connection.execute("CREATE TABLE sources (name TEXT, size INT, mtime_ns INT)")
        connection.executemany("INSERT INTO sources VALUES (?, ?, ?)", sources)
        for table in tables:
            connection.executemany(
                "INSERT INTO images VALUES (?, ?, ?, ?, ?) ON CONFLICT (url) DO UPDATE SET"
                " file = excluded.file, offset = excluded.offset, size = excluded.size, note = excluded.note"
                " WHERE file IS NULL AND excluded.file IS NOT NULL",
                _rows_of(table),
            )
        connection.commit()
        connection.close()
    return index


def _sources(folder: Path, tables: list[Path]) -> list[_Source]:
    """The files that the index is made of; of a folder ``NNNNN/`` its time tells what came or went."""
    places = [path for table in tables for path in (table.with_suffix(".tar"), table.with_suffix(""))]
    found = []
    for path in sorted([*tables, *places]):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((path.name, 0 if path.is_dir() else stat.st_size, stat.st_mtime_ns))
    return found


def _indexed_sources(index: Path) -> list[_Source]:
    """What an index was made of; nothing, if it is of an earlier version."""
    connection = sqlite3.connect(f"file:{quote(str(index.absolute()))}?mode=ro&immutable=1", uri=True)
    try:
        return connection.execute("SELECT name, size, mtime_ns FROM sources ORDER BY rowid").fetchall()
    except sqlite3.DatabaseError:
        return []
    finally:
        connection.close()


def _rows_of(table: Path) -> Iterator[_Row]:
    shard = table.with_suffix(".tar")
    places = _tar_places(shard) if shard.exists() else _folder_places(table.with_suffix(""))
    try:
        batches = pq.ParquetFile(table).iter_batches(columns=["url", "key", "status", "error_message"])
        for batch in batches:
            for row in batch.to_pylist():
                if row["url"] is None:
                    continue
                if row["status"] == "success" and row["key"] in places:
                    yield row["url"], *places[row["key"]]
                else:
                    yield row["url"], None, 0, 0, str(row["error_message"] or row["status"])
    except KeyError as error:
        raise ValueError(f"{table}: lacks the column {error}: not made by ingestion") from error


def _tar_places(shard: Path) -> dict[str, tuple[str, int, int, str]]:
    """(file, offset, size, suffix) of the picture of each key."""
    places = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            if member.isfile() and suffix not in _TEXT_SUFFIXES:
                places[key] = (shard.name, member.offset_data, member.size, suffix)
    return places


def _folder_places(folder: Path) -> dict[str, tuple[str, int, int, str]]:
    places = {}
    for entry in os.scandir(folder) if folder.is_dir() else ():
        key, _, suffix = entry.name.partition(".")
        if entry.is_file() and suffix not in _TEXT_SUFFIXES:
            places[key] = (f"{folder.name}/{entry.name}", 0, entry.stat().st_size, suffix)
    return places


class UrlImages:
    """Pictures of a folder by URL; use as a context manager, in one thread."""

    MAX_OPEN_FILES = 64

    def __init__(self, folder: Path) -> None:
        """Open the index. Raises FileNotFoundError if it is not there (`build_index`)."""
        if not (folder / INDEX_NAME).is_file():
            raise FileNotFoundError(f"{folder / INDEX_NAME}: no index of downloaded pictures")
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        address = f"file:{quote(str((folder / INDEX_NAME).absolute()))}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(address, uri=True)

    def __enter__(self) -> "UrlImages":
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        for file in self._files.values():
            file.close()

    def find(self, url: str) -> tuple[bytes, str] | str:
        """Bytes and suffix of the picture, or why there is none."""
        name, offset, size, note = self._place(url)
        if name is None:
            return note
        file = self._open(name)
        file.seek(offset)
        data = file.read(size)
        if len(data) != size:
            raise OSError(
                f"{self._folder / name}: shorter than {INDEX_NAME} says; remove the index to rebuild it"
            )
        return data, note

    def why_missing(self, url: str) -> str | None:
        """Why there is no picture, or None if there is one."""
        name, _, _, note = self._place(url)
        return note if name is None else None

    def _place(self, url: str) -> tuple[str | None, int, int, str]:
        query = "SELECT file, offset, size, note FROM images WHERE url = ?"
        try:
            row = self._connection.execute(query, (url,)).fetchone()
        except UnicodeEncodeError:  # a lone surrogate: what was read was no UTF-8
            return None, 0, 0, "is no URL: not UTF-8"
        return row or (None, 0, 0, "was never asked for")

    def _open(self, name: str) -> BinaryIO:
        if name not in self._files:
            if len(self._files) >= self.MAX_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[name] = (self._folder / name).open("rb")
        return self._files[name]
