"""Hold a packed shard against its contract: every row, every count of the footer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.packed_folder import RowGroup, open_packed_shard, read_checked_footer
from schemas.packed_shard import (
    ROWS_PER_GROUP,
    PackedSequence,
    PackedShardError,
    PackedShardFooter,
)
from schemas.packed_writer import find_problem
from schemas.vocabulary import CODES_PER_IMAGE, VocabularyLayout


def check_packed_shard(path: str | Path) -> PackedShardFooter:
    """Read every row of one packed shard and hold it against checksums, the contract and the footer.

    Raises:
        PackedShardError: naming the file, the row and the first thing that is wrong.
    """
    with open_packed_shard(str(path), verify=True) as file:
        footer = read_checked_footer(str(path), file)
        counts = np.zeros((len(footer.sources), 4), np.int64)
        row_number = 0
        for batch in _batches(path, file):
            rows = RowGroup.from_batch(batch, footer.id_dtype, footer.seq_length)
            parts = batch.column("parts").to_pylist()
            for index in range(batch.num_rows):
                try:
                    _count_row(rows.row(index), np.asarray(parts[index]), footer, counts)
                except ValueError as error:
                    raise PackedShardError(f"{path}: row {row_number}: {error}") from error
                row_number += 1
    expected = [[s.num_documents, s.num_ids, s.num_learned, s.num_images] for s in footer.sources]
    if counts.tolist() != expected:
        raise PackedShardError(
            f"{path}: documents, ids, learned ids and images by source are {counts.tolist()},"
            f" the footer says {expected}"
        )
    return footer


def _batches(path: str | Path, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(ROWS_PER_GROUP)
    except (OSError, pa.ArrowException) as error:
        raise PackedShardError(
            f"{path}: {error}; it was damaged after it was written: build the set again in another folder"
        ) from error


def _count_row(
    sequence: PackedSequence,
    parts: NDArray[np.integer],
    footer: PackedShardFooter,
    counts: NDArray[np.int64],
) -> None:
    """Add a row to ``counts`` (sources, 4); ValueError if it breaks the contract."""
    _check_row(sequence, parts, footer)
    mask, is_start = sequence.loss_mask, sequence.ids == footer.vocabulary.img_start_id
    for document, source in enumerate(sequence.sources):
        start, end = sequence.cu_seqlens[document : document + 2]
        num_learned, num_images = np.count_nonzero(mask[start:end]), np.count_nonzero(is_start[start:end])
        counts[source] += (int(parts[document] == 0), end - start, num_learned, num_images)


def _check_row(sequence: PackedSequence, parts: NDArray[np.integer], footer: PackedShardFooter) -> None:
    if problem := find_problem(sequence, footer.seq_length):
        raise ValueError(problem)
    if len(parts) != len(sequence.sources):
        raise ValueError(f"parts has {len(parts)} entries for {len(sequence.sources)} documents")
    if np.any(sequence.sources >= len(footer.sources)):
        raise ValueError(f"source {sequence.sources.max()} is none of the {len(footer.sources)} sources")
    if int(sequence.ids.max()) >= footer.vocabulary.size:
        raise ValueError(f"id {sequence.ids.max()} is outside the vocabulary of {footer.vocabulary.size}")
    if np.any(sequence.ids[sequence.num_ids :] != footer.padding_id):
        raise ValueError("ids behind the last document are not all the padding id")
    if problem := find_cut_span(sequence, footer.vocabulary):
        raise ValueError(problem)


def find_cut_span(sequence: PackedSequence, layout: VocabularyLayout) -> str | None:
    """Which image span is not ``<img>``, 32 codes, ``</img>`` within one document, or None."""
    ids = sequence.ids[: sequence.num_ids]
    starts, ends = np.flatnonzero(ids == layout.img_start_id), np.flatnonzero(ids == layout.img_end_id)
    if not np.array_equal(starts + CODES_PER_IMAGE + 1, ends):
        return (
            f"<img> at {starts.tolist()} and </img> at {ends.tolist()} do not stand 33 apart: a span is cut"
        )
    if np.count_nonzero(layout.is_code_id(ids)) != CODES_PER_IMAGE * len(starts) or not np.all(
        layout.is_code_id(ids[starts[:, None] + np.arange(1, CODES_PER_IMAGE + 1)])
    ):
        return "image codes stand outside <img> ... </img>, or text stands inside"
    documents = sequence.cu_seqlens
    if not np.array_equal(
        np.searchsorted(documents, starts, "right"), np.searchsorted(documents, ends, "right")
    ):
        return "an image span reaches over the bound of its document"
    return None
