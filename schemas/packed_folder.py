"""Random access to a folder of packed shards: row i of all of them, read by row group."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.mapped_ids import IdMap
from schemas.packed_shard import (
    FILE_PATTERN,
    ROWS_PER_GROUP,
    TRAINING_COLUMNS,
    Origins,
    PackedSequence,
    PackedShardError,
    PackedShardFooter,
    SourceCounts,
    footer_of,
    packed_schema,
)
from schemas.vocabulary import VocabularyLayout

CACHED_GROUPS, CACHED_MAPPED_GROUPS = 16, 1024
"""Row groups kept in memory: with their ids (64 sequences of 4096 are 0.5 MB), and without (20 kB)."""
OPEN_SHARDS = 64
"""Shards open at a time, a file descriptor each: a set may have more shards than a process opens files."""


@dataclass(frozen=True)
class OpenShard:
    """A shard that can be read; closed when the last reader lets go of it."""

    file: pq.ParquetFile
    id_map: IdMap | None
    """None where the file is not on a local disk."""


@dataclass(frozen=True)
class RowGroup:
    """Rows in memory: ids as a matrix, lists flattened with offsets."""

    ids: NDArray[Any]
    """(rows, seq_length), a view of what was read."""
    lists: list[tuple[NDArray[np.int32], NDArray[Any]]]
    """Offsets and values of the other training columns."""

    @classmethod
    def from_batch(
        cls,
        batch: pa.RecordBatch,
        id_dtype: np.dtype[Any],
        seq_length: int,
        ids: NDArray[Any] | None = None,
    ) -> "RowGroup":
        """Rows of a record batch; ``ids`` where they are mapped and the batch has no such column."""
        columns = [batch.column(name) for name in TRAINING_COLUMNS[1:]]
        lists = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in columns]
        return cls(_ids_of(batch, id_dtype, seq_length) if ids is None else ids, lists)

    def row(self, index: int) -> PackedSequence:
        columns = [values[offsets[index] : offsets[index + 1]] for offsets, values in self.lists]
        return PackedSequence(self.ids[index], columns[0], columns[1], columns[2])


def _ids_of(batch: pa.RecordBatch, id_dtype: np.dtype[Any], seq_length: int) -> NDArray[Any]:
    column = batch.column("ids")
    flat = np.frombuffer(column.buffers()[1], id_dtype)
    return flat.reshape(-1, seq_length)[column.offset : column.offset + len(column)]


class PackedFolder:
    """All packed shards of one build as one sequence of rows.

    Args:
        folder: path, or path within ``filesystem`` (any Arrow or fsspec file system).

    Raises:
        PackedShardError: if there is no packed shard, one is missing, or two belong to different builds.

    Reads are safe from several threads. All that Arrow reads is held against its checksums: not the ids of
    local files, which are mapped (``schemas/packed_check.py`` does it).
    """

    def __init__(self, folder: str | Path, *, filesystem: Any = None) -> None:
        self.folder = str(folder)
        self.paths = _list_shards(folder, filesystem)
        self._filesystem = filesystem
        self.footers, self._metadata = list[PackedShardFooter](), list[pq.FileMetaData]()
        for path in self.paths:
            with open_packed_shard(path, filesystem) as file:
                self.footers.append(read_checked_footer(path, file))
                self._metadata.append(file.metadata)
        _check_one_build(self.folder, self.footers)
        self._starts = np.concatenate([[0], np.cumsum([data.num_rows for data in self._metadata])])
        self._open_shards: OrderedDict[int, OpenShard] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int], RowGroup] = OrderedDict()
        self.cached_groups = CACHED_MAPPED_GROUPS if filesystem is None else CACHED_GROUPS
        self._locks = [Lock() for _ in self.paths]
        self._cache_lock = Lock()

    @property
    def footer(self) -> PackedShardFooter:
        """Footer of the first shard; all but the counts holds for the whole folder."""
        return self.footers[0]

    @property
    def seq_length(self) -> int:
        return self.footer.seq_length

    @property
    def vocabulary(self) -> VocabularyLayout:
        return self.footer.vocabulary

    @property
    def source_names(self) -> list[str]:
        """Names of the sources; the ``sources`` of a sequence index this list."""
        return [source.name for source in self.footer.sources]

    @property
    def source_counts(self) -> list[SourceCounts]:
        """Counts of every source over all shards."""
        return [
            _add_source_counts(shards)
            for shards in zip(*(footer.sources for footer in self.footers), strict=True)
        ]

    @property
    def num_ids(self) -> int:
        """Ids of one epoch, without padding."""
        return sum(footer.num_ids for footer in self.footers)

    def __len__(self) -> int:
        """Sequences of one epoch."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> PackedSequence:
        """Row ``index`` in stored order, without its origins."""
        shard, row = self.locate(index)
        group, row_in_group = divmod(row, ROWS_PER_GROUP)
        return self._group(shard, group).row(row_in_group)

    def with_origins(self, index: int) -> PackedSequence:
        """Row ``index`` in stored order, with where each of its documents came from."""
        sequence = self[index]
        shard, row = self.locate(index)
        group, row_in_group = divmod(row, ROWS_PER_GROUP)
        columns = ("shards", "rows", "epochs", "parts")
        with self._locks[shard]:
            table = self._read_columns(shard, self._open(shard), group, columns)
        cells = [table.column(name)[row_in_group].values for name in columns]
        origins = Origins(cells[0].to_pylist(), *(cell.to_numpy() for cell in cells[1:]))
        return PackedSequence(
            sequence.ids, sequence.cu_seqlens, sequence.loss_runs, sequence.sources, origins
        )

    def locate(self, index: int) -> tuple[int, int]:
        """Shard and row within it of a stored sequence.

        Raises:
            IndexError: outside the folder.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} is outside 0..{len(self) - 1} of {self.folder}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _group(self, shard: int, group: int) -> RowGroup:
        with self._cache_lock:
            if (shard, group) in self._cache:
                self._cache.move_to_end((shard, group))
                return self._cache[shard, group]
        loaded = self._read_group(shard, group)
        with self._cache_lock:
            self._cache[shard, group] = loaded
            while len(self._cache) > self.cached_groups:
                self._cache.popitem(last=False)
        return loaded

    def _read_group(self, shard: int, group: int) -> RowGroup:
        with self._locks[shard]:  # one ParquetFile serves one reader at a time
            opened = self._open(shard)
            columns = TRAINING_COLUMNS if opened.id_map is None else TRAINING_COLUMNS[1:]
            ids = None
            if opened.id_map is not None:
                ids = opened.id_map.group(self._metadata[shard], group, self.footer)
            table = self._read_columns(shard, opened, group, columns)
        (batch,) = table.combine_chunks().to_batches()
        return RowGroup.from_batch(batch, self.footer.id_dtype, self.seq_length, ids)

    def _read_columns(self, shard: int, opened: OpenShard, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a row group, held against the checksums of their pages."""
        try:
            return opened.file.read_row_group(group, columns=list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise PackedShardError(
                f"{self.paths[shard]}: row group {group}: {error}; `seed-pack validate` checks the whole set"
            ) from error

    def _open(self, shard: int) -> OpenShard:
        """The shard, opened unless it is; its footer is not read again. The caller holds its lock."""
        with self._cache_lock:
            if shard in self._open_shards:
                self._open_shards.move_to_end(shard)
                return self._open_shards[shard]
        path, is_local = self.paths[shard], self._filesystem is None
        file = pq.ParquetFile(
            path,
            metadata=self._metadata[shard],
            filesystem=self._filesystem,
            memory_map=is_local,
            page_checksum_verification=True,  # of lists; mapped ids are for `seed-pack validate`
        )
        opened = OpenShard(file, IdMap(path) if is_local else None)
        with self._cache_lock:
            self._open_shards[shard] = opened
            while len(self._open_shards) > OPEN_SHARDS:
                self._open_shards.popitem(last=False)
        return opened


def _list_shards(folder: str | Path, filesystem: Any) -> list[str]:
    if filesystem is None:
        paths = [str(path) for path in Path(folder).glob(FILE_PATTERN)]
    elif hasattr(filesystem, "glob"):
        paths = filesystem.glob(f"{folder}/{FILE_PATTERN}")
    else:
        infos = filesystem.get_file_info(pa.fs.FileSelector(str(folder)))
        paths = [info.path for info in infos if Path(info.path).match(FILE_PATTERN)]
    if not paths:
        raise PackedShardError(f"{folder}: no {FILE_PATTERN} in it; `seed-pack build` makes them")
    return sorted(paths)


def open_packed_shard(path: str, filesystem: Any = None, *, verify: bool = False) -> pq.ParquetFile:
    """A file that Arrow can read as Parquet; PackedShardError, which names it, where it cannot.

    Args:
        verify: hold what is read against the checksums of its pages.
    """
    try:
        return pq.ParquetFile(
            path,
            filesystem=filesystem,
            memory_map=filesystem is None,
            page_checksum_verification=verify,
        )
    except (FileNotFoundError, PermissionError):
        raise
    except (ValueError, OSError, pa.ArrowException) as error:  # bad Thrift is OSError, a bad name ValueError
        raise PackedShardError(f"{path}: {' '.join(str(error).split())}") from error


def read_checked_footer(path: str, file: pq.ParquetFile) -> PackedShardFooter:
    """The footer, which fits the columns and the number of rows."""
    try:
        footer = footer_of(file.metadata)
    except ValueError as error:
        raise PackedShardError(f"{path}: {error}") from error
    if not file.schema_arrow.equals(packed_schema(footer.seq_length, footer.vocabulary)):
        raise PackedShardError(f"{path}: columns differ from format version {footer.format_version}")
    if file.metadata.num_rows != footer.num_sequences:
        raise PackedShardError(
            f"{path}: {file.metadata.num_rows} rows, its footer says {footer.num_sequences}"
        )
    return footer


def _check_one_build(folder: str, footers: list[PackedShardFooter]) -> None:
    first = footers[0]
    for footer in footers:
        if footer.build_identity() != first.build_identity():
            raise PackedShardError(
                f"{folder}: shards {first.shard_index} and {footer.shard_index} come from different builds"
                f" (mixtures {first.mixture} and {footer.mixture}, seeds {first.seed} and {footer.seed});"
                " keep each build in its own folder"
            )
    present = sorted(footer.shard_index for footer in footers)
    missing = sorted(set(range(first.num_shards)) - set(present))
    if missing or len(present) != first.num_shards:
        raise PackedShardError(
            f"{folder}: {len(present)} of {first.num_shards} packed shards, missing {missing[:10]};"
            " run `seed-pack build` again, it continues where it stopped"
        )


def _add_source_counts(shards: tuple[SourceCounts, ...]) -> SourceCounts:
    names = ("num_documents", "num_ids", "num_learned", "num_images")
    return SourceCounts(shards[0].name, *(sum(getattr(shard, name) for shard in shards) for name in names))
