"""The URL lists that ingestion is given: which files they are, their columns, and their rows by shard."""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.ingest_config import IngestConfig

LIST_SUFFIXES = ("parquet", "csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz", "txt", "txt.gz")
_URL = re.compile(r"\"?[A-Za-z][A-Za-z0-9+.-]*://")
"""img2dataset reads texts as CSV: an address may stand in quotes."""


def list_files(url_list: Path) -> list[Path]:
    """The files of a list, in order. Raises ValueError, naming it, if there are none or of several kinds."""
    if url_list.is_file():
        files = [url_list]
    else:
        files = sorted(path for path in url_list.glob("*") if list_format(path))
    if not files:
        raise ValueError(
            f"--input {url_list}: no such file, or no {', '.join(LIST_SUFFIXES)} file in the folder"
        )
    formats = {list_format(path) for path in files}
    if len(formats) > 1 or None in formats:
        shown = ", ".join(sorted(str(kind) for kind in formats))
        raise ValueError(
            f"--input {url_list}: the files must be of one kind of {', '.join(LIST_SUFFIXES)}: {shown}"
        )
    return files


def check_columns(config: IngestConfig, files: list[Path]) -> None:
    """Raise ValueError for a column that a table lacks, naming those it has."""
    wanted = [config.url_column, config.caption_column, *config.kept_columns]
    for path in files:
        names = column_names(path)
        if missing := [name for name in wanted if name and names and name not in names]:
            raise ValueError(
                f"--input {path}: no column {', '.join(missing)}, it has {', '.join(names)};"
                " --url-column, --caption-column and --kept-columns name them"
            )


def check_urls(files: list[Path]) -> None:
    """Raise ValueError for a text that begins with no URL: a folder of pictures has captions of that name."""
    for path in files:
        first = _first_line(path) if str(list_format(path)).startswith("txt") else None
        if first and not _URL.match(first):
            raise ValueError(
                f"--input {path}: no list of URLs, it begins with {first[:60]!r}; if that is a caption, its"
                " picture needs no download: pictures with captions beside them are packed by"
                f" `tar cf 00000.tar --sort=name -C {path.parent} .`"
            )


def _first_line(path: Path) -> str | None:
    """Of a text, the first that is not empty."""
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as lines:
            texts = (line.decode("utf-8-sig", "replace").strip() for line in lines)
            return next(filter(None, texts), None)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"--input {path}: the list cannot be read: {error}") from error


def column_names(path: Path) -> list[str]:
    """Of a table, from its beginning; none for JSON lines and texts.

    Raises:
        ValueError: if the file is not what its name says.
    """
    kind = str(list_format(path)).removesuffix(".gz")
    try:
        if kind == "parquet":
            return list(pq.read_schema(path).names)
        if kind in ("csv", "tsv"):
            delimiter = "," if kind == "csv" else "\t"
            options = pyarrow.csv.ParseOptions(delimiter=delimiter)
            with pyarrow.csv.open_csv(path, parse_options=options) as table:
                return list(table.schema.names)
    except pa.ArrowInvalid as error:
        raise ValueError(f"--input {path}: no {kind} table: {error}") from error
    return []


def list_format(path: Path) -> str | None:
    """img2dataset's name of a list's format, from its suffix."""
    return next((suffix for suffix in LIST_SUFFIXES if path.name.endswith(f".{suffix}")), None)


def split_lists(
    config: IngestConfig, files: list[Path], done: set[int], staging: Path
) -> Iterator[tuple[int, str, list[str]]]:
    """(shard number, file with its rows, columns) of every shard that is not done yet.

    Raises:
        ValueError: if a list cannot be read.
    """
    (staging / "rows").mkdir()
    source = config.url_list if config.url_list.is_dir() else files[0]
    reader = _reader_class(config)(
        str(source),
        list_format(files[0]),
        config.url_column,
        config.caption_column,
        None,
        None,
        list(config.kept_columns) or None,
        config.images_per_shard,
        done,
        str(staging / "rows"),
    )
    for shard_id, rows in reader:
        yield shard_id, rows, reader.column_list


def _reader_class(config: IngestConfig) -> Any:
    """img2dataset's reader, which tells no file, in a form that names the one that cannot be read."""
    from img2dataset.reader import Reader

    columns = [config.url_column, config.caption_column, *config.kept_columns]

    class NamingReader(Reader):  # type: ignore[misc]  # img2dataset has no types
        def _save_to_arrow(self, input_file: str, start_shard_id: int) -> Any:
            try:
                return super()._save_to_arrow(input_file, start_shard_id)
            except (KeyError, pa.ArrowInvalid) as error:
                shown = ", ".join(filter(None, columns))
                raise ValueError(
                    f"--input {input_file}: cannot be read with the columns {shown}: {error}"
                ) from error

    return NamingReader
