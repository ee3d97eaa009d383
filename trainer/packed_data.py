"""Packed rows to batches: the global batch is a pure function of (seed, consumed sequences), on any ranks.

Step after step the run takes the next ``global_batch`` sequences of the endless order of
``schemas.packed_order``; a data-parallel rank takes its contiguous share. The whole state of the data is
one integer, ``consumed_sequences``.

Dimensions: B sequences, T ids of a sequence, N documents of the row that has most.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.packed_folder import PackedFolder
from schemas.packed_order import stored_index
from schemas.packed_shard import IGNORED_LABEL, PackedSequence

_PREFETCHED_STEPS = 2
_DOCUMENTS_MULTIPLE = 16
"""Rows of ``cu_seqlens`` are filled up to a multiple, so that compiled kernels see few shapes."""


@dataclass
class PackedBatch:
    """Rows as the model takes them."""

    ids_BT: Tensor
    """int64."""
    labels_BT: Tensor
    """int64: the next id of the same document where it is learned, else -100."""
    positions_BT: Tensor
    """int64, from 0 in each document; the padding is one more document."""
    cu_seqlens_BN: Tensor
    """(B, N + 1) int32, from 0 to T, filled with T."""
    sources_BT: Tensor
    """int64, source of each id's document; 0 in the padding, where no label is."""
    row_indices: list[int]
    """Rows of the packed set, for messages."""
    num_padding: int
    """Ids that belong to no document."""
    num_attended: int
    """Pairs of ids that causal attention within documents computes, padding left out."""

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on a device, copied without waiting."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "PackedBatch":
        """The same batch in page-locked memory, from which copies to a GPU overlap with its work."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        return replace(
            self,
            ids_BT=change(self.ids_BT),
            labels_BT=change(self.labels_BT),
            positions_BT=change(self.positions_BT),
            cu_seqlens_BN=change(self.cu_seqlens_BN),
            sources_BT=change(self.sources_BT),
        )


def collate(rows: Sequence[PackedSequence], row_indices: list[int]) -> PackedBatch:
    """Rows of one length to one batch."""
    length = len(rows[0].ids)
    ids = np.stack([row.ids for row in rows]).astype(np.int64)
    bounds = [_closed_bounds(row.cu_seqlens, length) for row in rows]
    width = max(len(bound) for bound in bounds)
    width = -(-(width - 1) // _DOCUMENTS_MULTIPLE) * _DOCUMENTS_MULTIPLE + 1
    cu_seqlens = np.full((len(rows), width), length, np.int32)
    labels = np.stack([row.labels for row in rows])
    positions = np.empty_like(ids)
    sources = np.zeros_like(ids)
    for index, (row, bound) in enumerate(zip(rows, bounds, strict=True)):
        cu_seqlens[index, : len(bound)] = bound
        positions[index] = np.arange(length) - np.repeat(bound[:-1], np.diff(bound))
        sources[index, : row.num_ids] = np.repeat(row.sources, np.diff(row.cu_seqlens))
    num_padding = sum(length - row.num_ids for row in rows)
    lengths = np.concatenate([np.diff(row.cu_seqlens) for row in rows]).astype(np.int64)
    num_attended = int((lengths * (lengths + 1) // 2).sum())
    return PackedBatch(
        ids_BT=torch.from_numpy(ids),
        labels_BT=torch.from_numpy(labels),
        positions_BT=torch.from_numpy(positions),
        cu_seqlens_BN=torch.from_numpy(cu_seqlens),
        sources_BT=torch.from_numpy(sources),
        row_indices=row_indices,
        num_padding=num_padding,
        num_attended=num_attended,
    )


def _closed_bounds(cu_seqlens: NDArray[np.integer], length: int) -> NDArray[np.int32]:
    """Document bounds that end at ``length``: the padding, if any, becomes a document of its own."""
    bounds = cu_seqlens.astype(np.int32)
    return bounds if bounds[-1] == length else np.append(bounds, np.int32(length))


@dataclass(frozen=True)
class BatchShape:
    """How a global batch is divided."""

    global_sequences: int
    """Sequences of one optimizer step, over all ranks."""
    micro_sequences: int
    """Sequences of one forward pass on one rank."""
    rank: int = 0
    """Data-parallel rank."""
    num_ranks: int = 1
    """Data-parallel ranks."""

    def __post_init__(self) -> None:
        if self.global_sequences % (self.num_ranks * self.micro_sequences):
            raise ValueError(
                f"data.global_batch ({self.global_sequences}) must be a multiple of data.micro_batch "
                f"({self.micro_sequences}) times the data-parallel ranks ({self.num_ranks})"
            )

    @property
    def rank_sequences(self) -> int:
        """Sequences of one optimizer step on this rank."""
        return self.global_sequences // self.num_ranks

    def positions(self, consumed: int) -> range:
        """Positions in the endless order of this rank's share of the step that begins after ``consumed``."""
        first = consumed + self.rank * self.rank_sequences
        return range(first, first + self.rank_sequences)


@dataclass
class StepData:
    """What one rank computes in one optimizer step."""

    micro_batches: list[PackedBatch]
    consumed_sequences: int
    """Of the whole run, when this step is done."""
    wait_s: float = 0.0
    """Seconds that the loop waited for it."""


def read_step(folder: PackedFolder, seed: int, shape: BatchShape, consumed: int) -> StepData:
    """This rank's micro-batches of the step that begins after ``consumed`` sequences."""
    indices = [stored_index(position, len(folder), seed) for position in shape.positions(consumed)]
    batches = []
    for start in range(0, len(indices), shape.micro_sequences):
        part = indices[start : start + shape.micro_sequences]
        batches.append(collate([folder[index] for index in part], part))
    return StepData(batches, consumed + shape.global_sequences)


def read_validation(folder: PackedFolder, shape: BatchShape, consumed: int, num_rows: int) -> StepData:
    """This rank's share of the first ``num_rows`` rows; rows beyond fill the last batch and count nothing."""
    step = read_step(folder, 0, shape, consumed)
    for place, position in enumerate(shape.positions(consumed)):
        if position >= num_rows:
            batch, row = divmod(place, shape.micro_sequences)
            step.micro_batches[batch].labels_BT[row] = IGNORED_LABEL
    return step


class PackedLoader:
    """Endless steps of one rank, read ahead by threads; in order, however many read."""

    def __init__(
        self,
        folder: PackedFolder,
        seed: int,
        shape: BatchShape,
        consumed_sequences: int,
        device: torch.device,
        num_workers: int = 1,
    ) -> None:
        self._folder = folder
        self._seed = seed
        self._shape = shape
        self._device = device
        self._next_to_read = consumed_sequences
        self._pool = ThreadPoolExecutor(num_workers, "packed-loader")
        self._pending: deque[Future[StepData]] = deque()
        for _ in range(num_workers + _PREFETCHED_STEPS):
            self._read_ahead()

    def __iter__(self) -> Iterator[StepData]:
        """Steps in order; an error of a reading thread is raised here."""
        while True:
            started = time.perf_counter()
            step = self._pending.popleft().result()
            step.wait_s = time.perf_counter() - started
            self._read_ahead()
            step.micro_batches = [batch.to(self._device) for batch in step.micro_batches]
            yield step

    def close(self) -> None:
        """End the reading threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> None:
        self._pending.append(self._pool.submit(self._read, self._next_to_read))
        self._next_to_read += self._shape.global_sequences

    def _read(self, consumed: int) -> StepData:
        step = read_step(self._folder, self._seed, self._shape, consumed)
        if self._device.type == "cuda":
            step.micro_batches = [batch.pin() for batch in step.micro_batches]
        return step


def describe_rows(folder: PackedFolder, row_indices: Sequence[int]) -> str:
    """Where rows stand and what they were made of, for messages about bad data."""
    lines = []
    for index in row_indices:
        shard, row = folder.locate(index)
        origins = folder.with_origins(index).origins
        assert origins is not None
        places = ", ".join(
            f"{path}:{place}" for path, place in zip(origins.shards, origins.rows, strict=True)
        )
        lines.append(f"{folder.paths[shard]} row {row} (from {places})")
    return "\n".join(lines)
