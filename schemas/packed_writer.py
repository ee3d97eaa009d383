"""Writes a packed shard: record batches of rows are held against the contract and leave as row groups."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.packed_folder import RowGroup
from schemas.packed_shard import (
    FOOTER_KEY,
    ROWS_PER_GROUP,
    TRAINING_COLUMNS,
    PackedSequence,
    PackedShardError,
    PackedShardFooter,
    decode_runs,
    packed_schema,
)
from schemas.vocabulary import VocabularyLayout

_PARQUET_OPTIONS: dict[str, Any] = {
    "compression": {"ids": "none"}
    | {f"{name}.list.element": "none" for name in TRAINING_COLUMNS[1:]}
    | {f"{name}.list.element": "zstd" for name in ("shards", "rows", "epochs", "parts")},
    "use_dictionary": ["shards.list.element", "epochs.list.element", "parts.list.element"],
    "write_statistics": False,
    "data_page_size": 1 << 30,  # one page per row group and column
    "write_page_checksum": True,
    "store_schema": True,
}


class PackedShardWriter:
    """Streams packed sequences into a packed shard; memory holds what was written last.

    The same sequences in the same order give the same bytes, in whatever batches they come. The caller writes
    to a temporary path and commits after ``close``.
    """

    def __init__(self, path: Path, seq_length: int, vocabulary: VocabularyLayout) -> None:
        self.num_sequences = 0
        self.num_ids = 0
        self._seq_length = seq_length
        self._id_dtype = np.dtype(vocabulary.id_dtype).newbyteorder("<")
        self._schema = packed_schema(seq_length, vocabulary)
        self._pending: list[pa.RecordBatch] = []
        self._num_pending = 0
        self._writer = pq.ParquetWriter(path, self._schema, **_PARQUET_OPTIONS)

    def write(self, sequence: PackedSequence) -> None:
        """Add a row.

        Raises:
            ValueError: if the row breaks the contract.
        """
        if sequence.origins is None:
            raise ValueError("a packed sequence is written with the origins of its documents")
        if problem := find_problem(sequence, self._seq_length):
            raise ValueError(problem)
        self.write_batch(row_batch(sequence, self._schema))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add rows, as ``to_batch`` lays them out (no slice of more).

        Raises:
            ValueError: naming the first row of the batch that breaks the contract.
        """
        if (row := find_unsound_row(batch, self._seq_length)) is not None:
            sequence = RowGroup.from_batch(batch, self._id_dtype, self._seq_length).row(row)
            problem = find_problem(sequence, self._seq_length) or "origins are not those of the documents"
            raise ValueError(f"row {row}: {problem}")
        bounds = batch.column("cu_seqlens")
        self.num_sequences += batch.num_rows
        self.num_ids += int(bounds.values.to_numpy()[bounds.offsets.to_numpy()[1:] - 1].sum(dtype=np.int64))
        self._pending.append(batch)
        self._num_pending += batch.num_rows
        if self._num_pending >= ROWS_PER_GROUP:
            self._flush(self._num_pending // ROWS_PER_GROUP * ROWS_PER_GROUP)

    def close(self, footer: PackedShardFooter) -> None:
        """Write the last row group and the footer.

        Raises:
            PackedShardError: if the footer's counts differ from what was written.
        """
        written, counted = (self.num_sequences, self.num_ids), (footer.num_sequences, footer.num_ids)
        if written != counted:
            raise PackedShardError(f"wrote {written} sequences and ids, footer says {counted}")
        if self._num_pending:
            self._flush(self._num_pending)
        self._writer.add_key_value_metadata({FOOTER_KEY: footer.to_json()})
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer.is_open:
            self._writer.close()  # without a footer: no reader takes it for a packed shard

    def _flush(self, num_rows: int) -> None:
        table = pa.Table.from_batches(self._pending).combine_chunks()
        self._writer.write_table(table.slice(0, num_rows), row_group_size=ROWS_PER_GROUP)
        self._pending = table.slice(num_rows).to_batches()
        self._num_pending -= num_rows


def to_batch(
    ids: NDArray[Any], columns: Mapping[str, tuple[pa.Array, NDArray[np.integer]]], schema: pa.Schema
) -> pa.RecordBatch:
    """Rows of a packed shard as a record batch.

    Args:
        ids: (num_rows, seq_length), padded.
        columns: for every other column its values, row after row, and where each row's begin (num_rows + 1).
        schema: ``packed_schema`` of the shard.
    """
    width = schema.field("ids").type
    little_endian = np.ascontiguousarray(ids, ids.dtype.newbyteorder("<"))
    arrays = [pa.FixedSizeBinaryArray.from_buffers(width, len(ids), [None, pa.py_buffer(little_endian)])]
    for field in schema:
        if field.name != "ids":
            values, offsets = columns[field.name]
            bounds = pa.array(np.asarray(offsets, np.int32))
            arrays.append(
                pa.ListArray.from_arrays(bounds, values.cast(field.type.value_type), type=field.type)
            )
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def row_batch(sequence: PackedSequence, schema: pa.Schema) -> pa.RecordBatch:
    """One row as a record batch; the sequence must have its origins."""
    columns = {}
    for name in schema.names[1:]:
        values = getattr(sequence if name in TRAINING_COLUMNS else sequence.origins, name)
        columns[name] = (pa.array(values), np.array([0, len(values)]))
    return to_batch(sequence.ids[None], columns, schema)


def find_unsound_row(batch: pa.RecordBatch, seq_length: int) -> int | None:
    """The first row in which ``find_problem`` finds one, all rows at once."""
    lists = {name: batch.column(name) for name in batch.schema.names[1:]}
    counts = {name: np.diff(column.offsets.to_numpy()) for name, column in lists.items()}
    num_documents = counts["cu_seqlens"] - 1
    is_sound = (num_documents >= 1) & (counts["loss_runs"] >= 1)
    for name in ("sources", "shards", "rows", "epochs", "parts"):
        is_sound &= counts[name] == num_documents
    if np.all(is_sound):
        is_sound &= _are_bounds_and_masks_sound(lists["cu_seqlens"], lists["loss_runs"], seq_length)
    return None if np.all(is_sound) else int(np.argmin(is_sound))


def _are_bounds_and_masks_sound(
    cu_seqlens: pa.ListArray, loss_runs: pa.ListArray, seq_length: int
) -> NDArray[np.bool_]:
    """(num_rows,) whether documents and runs add up, and no document's first id is learned."""
    bounds, offsets = cu_seqlens.values.to_numpy(), cu_seqlens.offsets.to_numpy()
    runs, run_offsets = loss_runs.values.to_numpy(), loss_runs.offsets.to_numpy()
    num_ids = bounds[offsets[1:] - 1]
    steps = np.diff(bounds, prepend=0)
    steps[offsets[:-1]] = 1  # not a step within a row
    are_sound: NDArray[np.bool_] = (
        (bounds[offsets[:-1]] == 0)
        & (np.minimum.reduceat(steps, offsets[:-1]) > 0)
        & (num_ids <= seq_length)
        & (np.minimum.reduceat(runs, run_offsets[:-1]) >= 0)
        & (np.add.reduceat(runs, run_offsets[:-1]) == num_ids)
    )
    if np.all(are_sound):
        place_in_row = np.arange(len(runs)) - np.repeat(run_offsets[:-1], np.diff(run_offsets))
        is_learned = np.append(np.repeat(place_in_row % 2 == 1, runs), False)
        row_starts = np.cumsum(num_ids) - num_ids
        places = bounds + np.repeat(row_starts, np.diff(offsets))
        is_bad = is_learned[places]
        is_bad[offsets[1:] - 1] = False  # where the row ends
        are_sound &= ~np.logical_or.reduceat(is_bad, offsets[:-1])
    return are_sound


def find_problem(sequence: PackedSequence, seq_length: int) -> str | None:
    """What is wrong with a row, or None. Checks shapes and bounds, not the ids' meaning."""
    if sequence.ids.shape != (seq_length,):
        return f"ids have shape {sequence.ids.shape}, expected ({seq_length},)"
    cu_seqlens, num_documents = sequence.cu_seqlens, len(sequence.cu_seqlens) - 1
    if num_documents < 1 or cu_seqlens[0] != 0 or np.any(np.diff(cu_seqlens) <= 0):
        return f"cu_seqlens {cu_seqlens.tolist()} must start at 0 and increase"
    if sequence.num_ids > seq_length:
        return f"cu_seqlens ends at {sequence.num_ids}, beyond seq_length {seq_length}"
    num_masked = int(sequence.loss_runs.sum())
    if num_masked != sequence.num_ids or int(sequence.loss_runs.min()) < 0:
        return f"loss_runs add up to {num_masked}, the documents to {sequence.num_ids}"
    if np.any(decode_runs(sequence.loss_runs)[cu_seqlens[:-1]]):
        return "the first id of a document is marked as learned, but nothing predicts it"
    lengths = {"sources": len(sequence.sources)}
    if origins := sequence.origins:
        lengths |= {name: len(getattr(origins, name)) for name in ("shards", "rows", "epochs", "parts")}
    for name, length in lengths.items():
        if length != num_documents:
            return f"{name} has {length} entries for {num_documents} documents"
    return None
