"""Exact duplicates over all sources, found with bounded memory.

Every document is hashed (kinds, roles, texts, codes; not its key or metadata). Hashes are dealt into
partitions, so that equal documents meet in one; there all but the first, in order of sources, files and rows,
are written down, and rendering leaves those rows out. Between which sources they stand is counted for the
report.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.packing.inputs import Chunk, read_chunk
from pipeline.packing.mixture_file import Mixture
from schemas.atomic_write import atomic_path
from schemas.document import Document, ImageSegment

DIGEST_TYPE = np.dtype([("high", "<u8"), ("low", "<u8"), ("source", "<u4"), ("file", "<u4"), ("row", "<u4")])
PLACE_TYPE = np.dtype([("source", "<u4"), ("file", "<u4"), ("row", "<u4")])
OVERLAP_TYPE = np.dtype([("source", "<i8"), ("first_source", "<i8"), ("num_documents", "<i8")])
ROWS_PER_PARTITION = 4_000_000
_SCHEMA = pa.schema([("entries", pa.binary())])


@dataclass(frozen=True)
class DigestTask:
    """Hash the documents of one chunk."""

    chunk: Chunk
    num_partitions: int
    output: Path


@dataclass(frozen=True)
class PartitionTask:
    """Find the duplicates of one partition."""

    partition: int
    digests: tuple[Path, ...]
    output: Path


def digest(document: Document) -> bytes:
    """128 bits over all that makes two documents equal."""
    state = hashlib.blake2b(digest_size=16)
    for segment in document.segments:
        role = (segment.role or "").encode()
        if isinstance(segment, ImageSegment):
            state.update(b"\x01" + role + b"\x00" + segment.codes.tobytes())
        else:
            text = segment.text.encode()
            state.update(b"\x02" + role + b"\x00" + len(text).to_bytes(8, "little") + text)
    return state.digest()


def write_digests(mixture: Mixture, task: DigestTask, is_kept: Callable[[Document], bool]) -> None:
    """Digests of those documents of a chunk that its filters and template keep, by partition."""
    chunk, digests, rows = task.chunk, list[bytes](), list[int]()
    for row, document in enumerate(read_chunk(mixture, chunk), start=chunk.first_row):
        if is_kept(document):
            digests.append(digest(document))
            rows.append(row)
    halves = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    entries = np.empty(len(halves), DIGEST_TYPE)
    entries["high"], entries["low"] = halves[:, 0], halves[:, 1]
    entries["source"], entries["file"], entries["row"] = chunk.source, chunk.file, rows
    partitions = entries["high"] % np.uint64(task.num_partitions)
    _write_arrays(task.output, [entries[partitions == index] for index in range(task.num_partitions)])


def find_duplicates(task: PartitionTask) -> None:
    """Places of all but the first of equal documents, sorted by place."""
    entries = np.concatenate(
        [_read_array(path, task.partition, DIGEST_TYPE) for path in task.digests]
        or [np.empty(0, DIGEST_TYPE)]
    )
    order = np.lexsort((entries["row"], entries["file"], entries["source"], entries["low"], entries["high"]))
    ordered = entries[order]
    is_repeat = np.zeros(len(ordered), np.bool_)
    is_repeat[1:] = (ordered["high"][1:] == ordered["high"][:-1]) & (
        ordered["low"][1:] == ordered["low"][:-1]
    )
    places = ordered[is_repeat][list(PLACE_TYPE.names or ())].astype(PLACE_TYPE)
    firsts = ordered["source"][np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(ordered))))]
    between = np.stack([ordered["source"][is_repeat], firsts[is_repeat]], axis=1).astype(np.int64)
    pairs, numbers = np.unique(between, axis=0, return_counts=True)
    overlaps = np.array([(*pair, number) for pair, number in zip(pairs, numbers, strict=True)], OVERLAP_TYPE)
    _write_arrays(task.output, [np.sort(places, order=PLACE_TYPE.names), overlaps])


class DuplicateList:
    """The duplicates of a mixture: a folder with one sorted list of places per partition, mapped."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("duplicates-*.arrow"))

    def rows(self, chunk: Chunk) -> set[int]:
        """Rows of a chunk to leave out."""
        found: set[int] = set()
        first = np.array((chunk.source, chunk.file, chunk.first_row), PLACE_TYPE)
        last = np.array((chunk.source, chunk.file, chunk.first_row + chunk.num_rows), PLACE_TYPE)
        for path in self._paths:
            places = _read_array(path, 0, PLACE_TYPE)
            bounds = np.searchsorted(places, np.stack([first, last]))
            found.update(places["row"][bounds[0] : bounds[1]].tolist())
        return found

    def overlaps(self) -> Counter[tuple[int, int]]:
        """(source, source of the first): in how many documents one repeats the other."""
        total: Counter[tuple[int, int]] = Counter()
        for path in self._paths:
            for source, first, number in _read_array(path, 1, OVERLAP_TYPE).tolist():
                total[source, first] += number
        return total


def _write_arrays(path: Path, arrays: list[NDArray[np.void]]) -> None:
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        for array in arrays:
            writer.write_batch(pa.record_batch([pa.array([array.tobytes()], pa.binary())], schema=_SCHEMA))


def _read_array(path: Path, index: int, dtype: np.dtype[np.void]) -> NDArray[np.void]:
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(index)
        return np.frombuffer(batch.column(0)[0].as_buffer(), dtype).copy()
