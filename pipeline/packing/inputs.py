"""What a mixture reads: its sources' files in chunks of some thousand rows, the unit of work of rendering."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.packing.lone_surrogates import without_lone_surrogates
from pipeline.packing.metadata_filter import field_names
from pipeline.packing.mixture_file import Mixture
from schemas.document import Document, TextSegment
from schemas.fingerprint import Fingerprint
from schemas.mixture import MixtureError, SourceConfig
from schemas.token_shard import TokenShardError, read_documents, read_footer, rows_within
from schemas.vocabulary import CODEBOOK_SIZE


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one file."""

    source: int
    file: int
    """Index among the source's files."""
    first_row: int
    num_rows: int
    row_groups: tuple[int, ...] = ()
    """Parquet: the row groups that hold them, first_row being the first row of the first."""
    byte_offset: int = 0
    """JSON lines: where the first line begins."""


def list_chunks(mixture: Mixture, source: int) -> list[Chunk]:
    """All chunks of a source, in order of files and rows.

    Raises:
        MixtureError: naming the file, if it cannot be read as what the source says it is.
    """
    config, chunks = mixture.config.sources[source], list[Chunk]()
    task_rows = mixture.config.packing.task_rows
    for file, name in enumerate(mixture.files[source]):
        try:
            if config.format == "jsonl":
                chunks += _json_chunks(mixture.path(name), source, file, task_rows)
            else:
                chunks += _parquet_chunks(mixture.path(name), source, file, task_rows)
        except (OSError, ValueError) as error:
            raise MixtureError(f"source {config.name}: {mixture.path(name)}: {error}") from error
    if not any(chunk.num_rows for chunk in chunks):
        raise MixtureError(f"source {config.name}: no document in {', '.join(mixture.files[source][:3])}")
    return chunks


def _parquet_chunks(path: Path, source: int, file: int, task_rows: int) -> Iterator[Chunk]:
    metadata = pq.read_metadata(path)
    first_row, groups, num_rows = 0, list[int](), 0
    for group in range(metadata.num_row_groups):
        group_rows = metadata.row_group(group).num_rows
        if groups and num_rows + group_rows > task_rows:
            yield Chunk(source, file, first_row, num_rows, tuple(groups))
            first_row, groups, num_rows = first_row + num_rows, [], 0
        groups.append(group)
        num_rows += group_rows
    if groups:
        yield Chunk(source, file, first_row, num_rows, tuple(groups))


def _json_chunks(path: Path, source: int, file: int, task_rows: int) -> Iterator[Chunk]:
    first_row = num_rows = start = offset = 0
    with path.open("rb") as lines:
        for line in lines:
            if num_rows == task_rows:
                yield Chunk(source, file, first_row, num_rows, byte_offset=start)
                first_row, num_rows, start = first_row + num_rows, 0, offset
            num_rows += 1
            offset += len(line)
    if num_rows:
        yield Chunk(source, file, first_row, num_rows, byte_offset=start)


def read_chunk(mixture: Mixture, chunk: Chunk, rows: NDArray[np.int64] | None = None) -> Iterator[Document]:
    """Documents of a chunk, in order; only some ``rows``, which increase from 0, if they are given.

    Raises:
        MixtureError: naming file and row, if a row is not what the source says it is, or the file is damaged.
    """
    config = mixture.config.sources[chunk.source]
    path = mixture.path(mixture.files[chunk.source][chunk.file])
    with damage_explained(path):
        if config.format == "token_shards":
            yield from read_documents(path, row_groups=chunk.row_groups, rows=rows)
        elif config.format == "parquet":
            yield from _read_text_parquet(path, chunk, config, rows)
        else:
            yield from _read_text_lines(path, chunk, config, rows)


@contextmanager
def damage_explained(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises while it is read into MixtureError with the remedy."""
    try:
        yield
    except TokenShardError as error:
        raise MixtureError(
            f"{error}; delete this token shard and run the command that made it again, which tokenizes only"
            " what is missing"
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise MixtureError(f"{path}: {error}; bring this file again, or take it out of `paths`") from error


def _read_text_parquet(
    path: Path, chunk: Chunk, config: SourceConfig, wanted: NDArray[np.int64] | None
) -> Iterator[Document]:
    """Texts of a column; columns that ``filters.where`` names are their metadata, as in JSON lines."""
    names = sorted(field_names(config.filters.where) - {config.text_field}) if config.filters.where else []
    with pq.ParquetFile(path) as file:
        for name, setting in (
            (config.text_field, "text_field"),
            *((name, "filters.where") for name in names),
        ):
            if name not in file.schema_arrow.names:
                columns = ", ".join(file.schema_arrow.names)
                raise MixtureError(f"{path}: no column {name!r} ({setting}), it has {columns}")
        text_type = file.schema_arrow.field(config.text_field).type
        if not _is_text(text_type):
            raise MixtureError(f"{path}: column {config.text_field!r} (text_field) is {text_type}, not text")
        first_row = chunk.first_row
        for whole in file.iter_batches(
            1024, row_groups=chunk.row_groups, columns=[config.text_field, *names]
        ):
            places = np.arange(whole.num_rows)
            if wanted is not None:
                places = rows_within(wanted, first_row - chunk.first_row, whole.num_rows)
            batch = whole.take(places)
            texts, rows = batch.column(config.text_field).to_pylist(), batch.select(names).to_pylist()
            fields_of = rows if names else [{}] * len(texts)
            for place, text, fields in zip(places.tolist(), texts, fields_of, strict=True):
                metadata = json.dumps(fields, default=str) if fields else None
                yield Document(str(first_row + place), (TextSegment(text or ""),), metadata)
            first_row += whole.num_rows


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(
        holds(kind) for holds in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _read_text_lines(
    path: Path, chunk: Chunk, config: SourceConfig, wanted: NDArray[np.int64] | None
) -> Iterator[Document]:
    rows = None if wanted is None else set((wanted + chunk.first_row).tolist())
    with path.open("rb") as lines:
        lines.seek(chunk.byte_offset)
        for row in range(chunk.first_row, chunk.first_row + chunk.num_rows):
            line = lines.readline()
            if rows is not None and row not in rows:
                continue
            try:
                fields = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:
                raise MixtureError(f"{path}: line {row + 1} is no JSON object: {error}") from error
            if not isinstance(fields, dict):
                kind = type(fields).__name__
                raise MixtureError(f"{path}: line {row + 1} is no JSON object: it holds a {kind}")
            text = fields.pop(config.text_field, None) or ""
            if not isinstance(text, str):
                kind = type(text).__name__
                raise MixtureError(f"{path}: line {row + 1}: {config.text_field!r} is {kind}, not text")
            metadata = json.dumps(fields) if fields else None
            yield Document(str(row), (TextSegment(without_lone_surrogates(text)),), metadata)


@dataclass(frozen=True)
class Codebooks:
    """The codebook of a mixture's images."""

    fingerprints: Mapping[str, str]
    """``Fingerprint.codebook_hex`` by source of token shards; all are equal."""
    num_codes: int


def check_codebooks(mixture: Mixture) -> Codebooks:
    """The one codebook of all sources of token shards.

    Shards of different precision or preprocessing share a codebook and may be mixed.

    Raises:
        MixtureError: naming the first shard with another codebook and what differs.
    """
    first: tuple[Path, Fingerprint] | None = None
    codebooks = {}
    for config, names in zip(mixture.config.sources, mixture.files, strict=True):
        if config.format != "token_shards":
            continue
        for name in names:
            path = mixture.path(name)
            try:
                fingerprint = read_footer(path).fingerprint
            except TokenShardError as error:
                raise MixtureError(f"source {config.name}: {error}") from error
            first = first or (path, fingerprint)
            if fingerprint.codebook_hex != first[1].codebook_hex:
                differences = "; ".join(fingerprint.differences(first[1]))
                raise MixtureError(
                    f"source {config.name}: {path} was made with another codebook than {first[0]}:"
                    f" {differences}."
                    " The same code means different things in them: tokenize one of them again"
                )
            codebooks[config.name] = fingerprint.codebook_hex
    return Codebooks(codebooks, first[1].num_codes if first else CODEBOOK_SIZE)
