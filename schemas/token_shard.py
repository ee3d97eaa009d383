"""The token shard: one Parquet file per source shard, one row per document (format version 1).

Flat parallel columns: ``kinds`` says which segments are text and which are images, ``texts`` and ``codes``
hold them in order. Codes are byte-stream-split and zstd-compressed: 52.1 bytes an image for uniform codes,
where 52 is the limit (``benchmarks/codes_encoding.py``). ``docs/formats.md`` is the specification.

The footer makes a file self-contained: what it was made from, by which tokenizer, and what became of
every sample. A token shard that exists is complete.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.document import Document, ImageSegment, Role, Segment, TextSegment
from schemas.token_shard_footer import FORMAT_VERSION, QuarantineFile, ShardCounts, TokenShardFooter
from schemas.vocabulary import CODES_PER_IMAGE

__all__ = [
    "BYTES_PER_GROUP", "FOOTER_KEY", "FORMAT_VERSION", "KIND_IMAGE", "KIND_TEXT", "ROLES", "ROWS_PER_GROUP",
    "SCHEMA", "QuarantineFile", "ShardCounts", "TokenShardError", "TokenShardFooter", "TokenShardWriter",
    "check_token_shard", "errors_named", "read_documents", "read_footer",
    "rows_within",
]  # fmt: skip

FOOTER_KEY = b"seed_shards.token_shard"
KIND_TEXT, KIND_IMAGE = 0, 1
ROLES = (Role.SYSTEM, Role.USER, Role.ASSISTANT)
"""The number of a role in the ``roles`` column is its place here."""
ROWS_PER_GROUP = 16_384
BYTES_PER_GROUP = 32 << 20
"""A row group ends at whichever comes first, so that memory is bounded however long the texts are."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("kinds", pa.list_(pa.field("element", pa.uint8(), nullable=False)), nullable=False),
        pa.field("texts", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
        pa.field("codes", pa.list_(pa.field("element", pa.uint16(), nullable=False)), nullable=False),
        pa.field("roles", pa.list_(pa.field("element", pa.uint8(), nullable=False))),
        pa.field("times_s", pa.list_(pa.field("element", pa.float32(), nullable=False))),
        pa.field("metadata", pa.string()),
    ]
)


class TokenShardError(ValueError):
    """A file is no token shard, or breaks the contract; the message names the file and what is wrong."""


class TokenShardWriter:
    """Streams documents into a token shard; memory holds one row group at most.

    The same documents in the same order give the same bytes. Used as a context manager it leaves an
    unfinished file behind on error: the caller writes to a temporary path and commits after ``close``.
    """

    def __init__(self, path: Path) -> None:
        self.num_documents = 0
        self.num_images = 0
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._buffered_bytes = 0
        self._writer = pq.ParquetWriter(path, SCHEMA, **_PARQUET_OPTIONS)

    def write(self, document: Document) -> None:
        """Add a document.

        Raises:
            ValueError: if only some of its segments have a role, or only some of its images a time.
        """
        row = _to_row(document)
        for name, column in self._columns.items():
            column.append(row[name])
        self.num_documents += 1
        self.num_images += len(row["codes"]) // CODES_PER_IMAGE
        strings = (document.key, document.metadata or "", *row["texts"])
        self._buffered_bytes += 2 * len(row["codes"]) + sum(map(_num_utf8_bytes, strings))
        if len(self._columns["key"]) >= ROWS_PER_GROUP or self._buffered_bytes >= BYTES_PER_GROUP:
            self._flush()

    def close(self, footer: TokenShardFooter) -> None:
        """Write the last row group and the footer.

        Raises:
            TokenShardError: if the footer's counts do not balance or differ from what was written.
        """
        if imbalance := footer.counts.imbalance():
            raise TokenShardError(f"{footer.source}: {imbalance}")
        written = (self.num_documents, self.num_images)
        counted = (footer.counts.documents_written, footer.counts.images_written)
        if written != counted:
            raise TokenShardError(
                f"{footer.source}: wrote {written} documents and images, footer says {counted}"
            )
        self._flush()
        self._writer.add_key_value_metadata({FOOTER_KEY: footer.to_json()})
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer.is_open:
            self._writer.close()  # without a footer: no reader takes it for a token shard

    def _flush(self) -> None:
        if self._columns["key"]:
            self._writer.write_batch(_to_batch(self._columns))
            for column in self._columns.values():
                column.clear()
            self._buffered_bytes = 0


def _num_utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


_PARQUET_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": False,
    "use_byte_stream_split": ["codes.list.element"],
    "write_statistics": False,
    # One page per row group: zstd then sees all high bytes together (52.1, not 53.2 bytes an image).
    "data_page_size": 8 << 20,
    "data_page_version": "1.0",
    "write_page_checksum": True,
    "store_schema": True,
}


def _to_row(document: Document) -> dict[str, Any]:
    segments, images = document.segments, document.images
    has_roles = any(segment.role is not None for segment in segments)
    if has_roles and any(segment.role is None for segment in segments):
        raise ValueError(f"document {document.key!r}: some segments have a role and some have none")
    times = [image.time_s for image in images]
    has_times = any(time is not None for time in times)
    if has_times and any(time is None for time in times):
        raise ValueError(f"document {document.key!r}: some images have a time and some have none")
    return {
        "key": document.key,
        "kinds": [KIND_IMAGE if isinstance(segment, ImageSegment) else KIND_TEXT for segment in segments],
        "texts": document.texts,
        "codes": np.concatenate([image.codes for image in images]) if images else _NO_CODES,
        "roles": [ROLES.index(segment.role) for segment in segments if segment.role] if has_roles else None,
        "times_s": times if has_times else None,
        "metadata": document.metadata,
    }


_NO_CODES = np.empty(0, np.uint16)


def _to_batch(columns: Mapping[str, list[Any]]) -> pa.RecordBatch:
    arrays = []
    for schema_field in SCHEMA:
        values = columns[schema_field.name]
        if schema_field.name == "codes":
            offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
            arrays.append(pa.ListArray.from_arrays(offsets, np.concatenate(values), type=schema_field.type))
        else:
            arrays.append(pa.array(values, schema_field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def read_footer(source: str | Path | pa.NativeFile, *, filesystem: Any = None) -> TokenShardFooter:
    """Footer of a token shard.

    Args:
        source: path, URL path within ``filesystem``, or an open Arrow file.

    Raises:
        TokenShardError: naming the file, if it is no token shard of this version.
        FileNotFoundError: if there is none.
    """
    with errors_named(source):
        metadata = pq.read_metadata(source, filesystem=filesystem).metadata or {}
        if FOOTER_KEY not in metadata:
            raise ValueError(f"no {FOOTER_KEY.decode()} entry: not a token shard")
        return TokenShardFooter.from_json(metadata[FOOTER_KEY])


@contextmanager
def errors_named(source: str | Path | pa.NativeFile) -> Iterator[None]:
    """Turn what a damaged or foreign file makes Arrow raise into TokenShardError with the file's name."""
    try:
        yield
    except (FileNotFoundError, TokenShardError):
        raise
    except (ValueError, OSError, pa.ArrowException) as error:
        raise TokenShardError(f"{source}: {error}") from error


def read_documents(
    source: str | Path | pa.NativeFile,
    *,
    batch_rows: int = 1024,
    row_groups: Sequence[int] | None = None,
    rows: NDArray[np.int64] | None = None,
    filesystem: Any = None,
) -> Iterator[Document]:
    """Documents of a token shard, or of some of its row groups, in order, ``batch_rows`` at a time in memory.

    Of ``rows``, increasing and counted from the first row of these row groups, if they are given.

    Page checksums are verified: bit damage is an error, not another caption.

    Raises:
        TokenShardError: naming the file, if a row breaks the contract or the file is damaged.
        FileNotFoundError: if there is none.
    """
    with (
        errors_named(source),
        pq.ParquetFile(source, filesystem=filesystem, page_checksum_verification=True) as file,
    ):
        if not file.schema_arrow.equals(SCHEMA):
            raise TokenShardError(f"{source}: columns differ from format version {FORMAT_VERSION}")
        groups = range(file.num_row_groups) if row_groups is None else row_groups
        num_read, num_missing = 0, sum(file.metadata.row_group(group).num_rows for group in groups)
        for batch in file.iter_batches(batch_rows, row_groups=list(groups)):
            num_missing -= batch.num_rows
            wanted = batch if rows is None else batch.take(rows_within(rows, num_read, batch.num_rows))
            num_read += batch.num_rows
            yield from _from_batch(wanted, str(source))
        if num_missing:  # a damaged page header can end a column early without an error
            raise TokenShardError(f"{source}: {num_missing} rows fewer than its footer says")


def rows_within(rows: NDArray[np.int64], start: int, num_rows: int) -> NDArray[np.int64]:
    """Those of ``rows``, which increase, among the ``num_rows`` from ``start``, counted from there."""
    first, last = np.searchsorted(rows, [start, start + num_rows])
    return rows[first:last] - start


def _from_batch(batch: pa.RecordBatch, name: str) -> Iterator[Document]:
    columns = {key: batch.column(key).to_pylist() for key in SCHEMA.names if key != "codes"}
    codes_column = batch.column("codes")
    codes = codes_column.values.to_numpy()
    offsets = codes_column.offsets.to_numpy()
    for index, key in enumerate(columns["key"]):
        row_codes = codes[offsets[index] : offsets[index + 1]]
        row = {column: values[index] for column, values in columns.items()}
        try:
            segments = _to_segments(row, row_codes)
        except (ValueError, IndexError) as error:
            raise TokenShardError(f"{name}: document {key!r}: {error}") from error
        yield Document(key, segments, row["metadata"])


def _to_segments(row: Mapping[str, Any], codes: np.ndarray) -> tuple[Segment, ...]:
    kinds, texts, roles, times = row["kinds"], row["texts"], row["roles"], row["times_s"]
    if roles == [] or times == []:
        raise ValueError("roles and times_s are null where there is none, never empty")
    num_images = kinds.count(KIND_IMAGE)
    if kinds.count(KIND_TEXT) + num_images != len(kinds):
        raise ValueError(f"unknown segment kind in {kinds}")
    lengths = (len(texts), len(codes), len(roles or kinds), len(times) if times else num_images)
    expected = (len(kinds) - num_images, num_images * CODES_PER_IMAGE, len(kinds), num_images)
    if lengths != expected:
        raise ValueError(f"texts, codes, roles and times have lengths {lengths}, kinds asks for {expected}")
    if roles and max(roles) >= len(ROLES):
        raise ValueError(f"unknown role in {roles}")
    text_iterator, image_index, segments = iter(texts), 0, list[Segment]()
    for position, kind in enumerate(kinds):
        role = ROLES[roles[position]] if roles else None
        if kind == KIND_TEXT:
            segments.append(TextSegment(next(text_iterator), role))
        else:
            span = codes[image_index * CODES_PER_IMAGE : (image_index + 1) * CODES_PER_IMAGE]
            segments.append(ImageSegment(span, role, times[image_index] if times else None))
            image_index += 1
    return tuple(segments)


def check_token_shard(source: str | Path, *, filesystem: Any = None) -> TokenShardFooter:
    """Read every row of a token shard and hold it against the schema, the footer and the balance.

    Raises:
        TokenShardError: naming the file and the first thing that is wrong.
    """
    footer = read_footer(source, filesystem=filesystem)
    if imbalance := footer.counts.imbalance():
        raise TokenShardError(f"{source}: {imbalance}")
    num_documents = num_images = 0
    for document in read_documents(source, filesystem=filesystem):
        num_documents += 1
        num_images += len(document.images)
    counted = (footer.counts.documents_written, footer.counts.images_written)
    if (num_documents, num_images) != counted:
        raise TokenShardError(
            f"{source}: holds {num_documents} documents and {num_images} images, footer says {counted}"
        )
    return footer
