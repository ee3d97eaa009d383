"""Rows of Parquet files as Python values, from a local path or an fsspec URL.

A cell that is not UTF-8 is decoded with ``surrogateescape``: its bad bytes become lone surrogates, which
`document_text.clean_text` refuses or replaces. So it costs its document at most, and not its file.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.source_stream import filesystem_of, is_local

BATCH_ROWS = 64
_AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}


def read_parquet_rows(
    url: str, required: Collection[str], columns: Collection[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a file, a few at a time in memory.

    Args:
        url: local path or fsspec URL.
        required: columns that there must be.
        columns: those that are read, where there are such; None for all.

    Raises:
        ValueError: naming the file, if it is no Parquet, lacks a column, or holds strings that are not UTF-8
            deeper than in a list.
        FileNotFoundError: if there is none.
    """
    try:
        with _open(url) as file:
            names = file.schema_arrow.names
            if missing := set(required) - set(names):
                raise ValueError(
                    f"{url}: no column {', '.join(sorted(missing))}: not the published OBELICS layout"
                )
            chosen = None if columns is None else [name for name in columns if name in names]
            for batch in file.iter_batches(BATCH_ROWS, columns=chosen):
                yield from _rows(batch)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"{url}: {error}") from error


@contextmanager
def _open(url: str) -> Iterator[pq.ParquetFile]:
    if is_local(url):
        with pq.ParquetFile(url) as file:
            yield file
        return
    filesystem, path = filesystem_of(url)
    with filesystem.open(path, "rb") as stream, pq.ParquetFile(stream) as file:
        yield file


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        return [_row(batch.slice(place, 1)) for place in range(batch.num_rows)]


def _row(row: pa.RecordBatch) -> dict[str, Any]:
    return {name: _value(row.column(name)) for name in row.schema.names}


def _value(cell: pa.Array) -> Any:
    """The only value of an array."""
    try:
        return cell[0].as_py()
    except UnicodeDecodeError:
        if cell.type in _AS_BYTES:
            return _decoded(cell.cast(_AS_BYTES[cell.type])[0].as_py())
        if pa.types.is_list(cell.type) and cell.type.value_type in _AS_BYTES:
            entries = cell.cast(pa.list_(_AS_BYTES[cell.type.value_type]))[0].as_py()
            return [_decoded(entry) for entry in entries]
        raise


def _decoded(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogateescape")
