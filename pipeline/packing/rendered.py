"""Rendered documents on their way through the build: columns in memory, Arrow IPC files on disk.

An item is a document, or one part of a document that was too long. Files hold record batches without
compression, so that a task maps them and touches only the batches it needs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.atomic_write import atomic_path

COUNTS_KEY = b"seed_shards.counts"


@dataclass(frozen=True, slots=True)
class Items:
    """Columns of some items; equally long but for the two flat ones."""

    ids: NDArray[Any]
    """(num_ids,) uint16 or uint32, item after item."""
    loss_mask: NDArray[np.bool_]
    """(num_ids,)"""
    offsets: NDArray[np.int64]
    """(num_items + 1,) starts of the items in ``ids``."""
    keys: NDArray[np.uint64]
    """Place in the shuffled order of the source; the parts of a document share it."""
    files: NDArray[np.uint32]
    """Index among the source's files."""
    rows: NDArray[np.uint32]
    epochs: NDArray[np.uint16]
    parts: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def take(self, order: NDArray[np.integer]) -> "Items":
        """Items in another order, or some of them."""
        chosen = pa.array(order)
        ids, mask = (_take_runs(column, self.offsets, chosen) for column in (self.ids, self.loss_mask))
        offsets = np.concatenate([[0], np.cumsum(self.lengths[order])])
        columns = [getattr(self, name)[order] for name in _ITEM_COLUMNS]
        return Items(ids, mask, offsets, *columns)

    def slice(self, start: int, stop: int) -> "Items":
        """Consecutive items, without copying."""
        span = slice(self.offsets[start], self.offsets[stop])
        columns = [getattr(self, name)[start:stop] for name in _ITEM_COLUMNS]
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        return Items(self.ids[span], self.loss_mask[span], offsets, *columns)

    @classmethod
    def concatenate(cls, several: Sequence["Items"]) -> "Items":
        """All items, one group behind the other; at least one group."""
        starts = np.cumsum([0, *(len(items.ids) for items in several)])
        offsets = [items.offsets[:-1] + start for items, start in zip(several, starts, strict=False)]
        columns = [np.concatenate([getattr(items, name) for items in several]) for name in _ITEM_COLUMNS]
        ids = np.concatenate([items.ids for items in several])
        mask = np.concatenate([items.loss_mask for items in several])
        return cls(ids, mask, np.concatenate([*offsets, starts[-1:]]), *columns)


def _take_runs(flat: NDArray[Any], offsets: NDArray[np.int64], chosen: pa.Array) -> NDArray[Any]:
    """Runs of a flat column in another order. As binary values: Arrow copies each as one piece of memory."""
    byte_offsets = np.ascontiguousarray(offsets * flat.dtype.itemsize, np.int64)
    buffers = [None, pa.py_buffer(byte_offsets), pa.py_buffer(np.ascontiguousarray(flat))]
    taken = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers).take(chosen)
    _, _, data = taken.buffers()
    return np.frombuffer(data if data is not None else b"", flat.dtype)


_ITEM_COLUMNS = ("keys", "files", "rows", "epochs", "parts")
_TYPES = {
    "keys": pa.uint64(),
    "files": pa.uint32(),
    "rows": pa.uint32(),
    "epochs": pa.uint16(),
    "parts": pa.uint16(),
}


def items_schema(id_dtype: type[np.generic]) -> pa.Schema:
    id_type = pa.uint16() if id_dtype == np.uint16 else pa.uint32()
    lists = [("ids", pa.large_list(id_type)), ("loss_mask", pa.large_list(pa.bool_()))]
    return pa.schema([*lists, *_TYPES.items()])


def write_items(path: Path, groups: Sequence[Items], counts: Mapping[str, Any], schema: pa.Schema) -> None:
    """Write one record batch per group, and counts into the schema's metadata, in one atomic step."""
    schema = schema.with_metadata({COUNTS_KEY: json.dumps(counts).encode()})
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for items in groups:
            writer.write_batch(_to_batch(items, schema))


def _to_batch(items: Items, schema: pa.Schema) -> pa.RecordBatch:
    offsets = pa.array(items.offsets, pa.int64())
    ids = pa.LargeListArray.from_arrays(offsets, pa.array(items.ids, schema.field("ids").type.value_type))
    mask = pa.LargeListArray.from_arrays(offsets, pa.array(items.loss_mask))
    rest = [pa.array(getattr(items, name), kind) for name, kind in _TYPES.items()]
    return pa.RecordBatch.from_arrays([ids, mask, *rest], schema=schema)


class ItemsFile:
    """An open file of items; record batches are mapped, not read."""

    def __init__(self, path: Path) -> None:
        self._source = pa.memory_map(str(path))
        self._reader = pa.ipc.open_file(self._source)

    def __len__(self) -> int:
        """Record batches."""
        return int(self._reader.num_record_batches)

    @property
    def counts(self) -> dict[str, Any]:
        counts: dict[str, Any] = json.loads(self._reader.schema.metadata[COUNTS_KEY])
        return counts

    def __getitem__(self, index: int) -> Items:
        batch = self._reader.get_batch(index)
        ids, mask = batch.column("ids"), batch.column("loss_mask")
        columns = [batch.column(name).to_numpy() for name in _TYPES]
        return Items(
            ids.values.to_numpy(),
            mask.values.to_numpy(zero_copy_only=False),
            ids.offsets.to_numpy(),
            *columns,
        )

    def lengths(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Lengths and part numbers of a batch's items, without touching the ids."""
        batch = self._reader.get_batch(index)
        return np.diff(batch.column("ids").offsets.to_numpy()), batch.column("parts").to_numpy()

    def close(self) -> None:
        self._source.close()
