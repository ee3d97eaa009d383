"""Packing, the last stage: some windows of the plan to one packed shard.

Within a window documents go to rows by ``best_fit``. Within a row they stand grouped by source, the sources
as in the mixture file, the documents of each in its shuffled order. The rows of a window are ordered so that
the shares of the sources stay as close to the weights as a look-ahead over a random order allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.packing.best_fit import assign_rows
from pipeline.packing.draws import stable_hash
from pipeline.packing.mix import WindowPlan
from pipeline.packing.rendered import Items
from pipeline.packing.shuffle_task import ShuffledSource
from schemas.atomic_write import atomic_path
from schemas.packed_shard import (
    PackedShardFooter,
    SourceCounts,
    encode_row_runs,
    packed_schema,
)
from schemas.packed_writer import PackedShardWriter, to_batch

ROWS_LOOKED_AHEAD = 32


@dataclass(frozen=True)
class PackTask:
    """Windows ``first_window`` to ``last_window`` (exclusive) of a plan."""

    shard_index: int
    first_window: int
    last_window: int
    output: Path


@dataclass(frozen=True)
class PackPlan:
    """What all pack tasks of a build share."""

    windows: WindowPlan
    sources: tuple[tuple[str, ...], ...]
    """Files of each source in shuffled order."""
    file_names: tuple[tuple[str, ...], ...]
    """Names of each source's input files, for the origins."""
    footer: PackedShardFooter
    """Footer without what differs between shards."""


def pack_shard(plan: PackPlan, task: PackTask) -> None:
    """Write one packed shard, atomically."""
    layout, seq_length = plan.footer.vocabulary, plan.footer.seq_length
    sources = [ShuffledSource(list(map(Path, paths))) for paths in plan.sources]
    counts = np.zeros((len(sources), 4), np.int64)
    with (
        atomic_path(task.output) as temporary,
        PackedShardWriter(temporary, seq_length, layout) as writer,
    ):
        for window in range(task.first_window, task.last_window):
            writer.write_batch(pack_window(plan, sources, window, counts))
        writer.close(_finish_footer(plan.footer, task, writer.num_sequences, counts))


def pack_window(
    plan: PackPlan, sources: Sequence[ShuffledSource], window: int, counts: NDArray[np.int64]
) -> pa.RecordBatch:
    """Rows of one window in their final order; adds documents, ids, learned ids and images to ``counts``."""
    items, item_sources = _read_window(plan.windows, sources, window)
    rows: NDArray[np.integer] = assign_rows(items.lengths.astype(np.int32), plan.footer.seq_length)
    row_order = order_rows(
        row_amounts(items.lengths, item_sources, rows, len(sources)),
        np.random.default_rng(stable_hash(plan.footer.seed, window)),
    )
    rows = np.argsort(row_order)[rows]
    order = np.argsort(rows, kind="stable")
    items, item_sources, rows = items.take(order), item_sources[order], rows[order]
    _count(items, item_sources, plan.footer, counts)
    first_items = np.append(np.flatnonzero(np.diff(rows, prepend=-1)), len(rows))
    return _lay_out(items, item_sources, first_items, plan)


def _read_window(
    windows: WindowPlan, sources: Sequence[ShuffledSource], window: int
) -> tuple[Items, NDArray[np.uint16]]:
    """Items of a window and their sources, in the order of the sources."""
    groups, item_sources = list[Items](), list[NDArray[np.uint16]]()
    for index, source in enumerate(sources):
        start, stop = windows.bounds[window, index], windows.bounds[window + 1, index]
        groups += source.read(int(start), int(stop))
        item_sources.append(np.full(stop - start, index, np.uint16))
    return Items.concatenate(groups), np.concatenate(item_sources)


def _lay_out(
    items: Items, item_sources: NDArray[np.uint16], first_items: NDArray[np.int64], plan: PackPlan
) -> pa.RecordBatch:
    """Rows from items that stand in their order; ``first_items``: where each row's begin."""
    footer, num_rows = plan.footer, len(first_items) - 1
    bounds = items.offsets[first_items]
    ids = np.full((num_rows, footer.seq_length), footer.padding_id, footer.vocabulary.id_dtype)
    for row, (start, stop) in enumerate(pairwise(bounds.tolist())):
        ids[row, : stop - start] = items.ids[start:stop]
    starts = items.offsets[:-1] - np.repeat(bounds[:-1], np.diff(first_items))
    cu_seqlens = np.insert(starts, first_items[1:], np.diff(bounds))
    runs, first_runs = encode_row_runs(items.loss_mask, bounds)
    columns: dict[str, tuple[pa.Array, NDArray[np.integer]]] = {
        "cu_seqlens": (pa.array(cu_seqlens), first_items + np.arange(num_rows + 1)),
        "loss_runs": (pa.array(runs), first_runs),
        "sources": (pa.array(item_sources), first_items),
        "shards": (_names_of(items, item_sources, plan.file_names), first_items),
        "rows": (pa.array(items.rows), first_items),
        "epochs": (pa.array(items.epochs), first_items),
        "parts": (pa.array(items.parts), first_items),
    }
    return to_batch(ids, columns, packed_schema(footer.seq_length, footer.vocabulary))


def _names_of(
    items: Items, item_sources: NDArray[np.uint16], file_names: Sequence[Sequence[str]]
) -> pa.StringArray:
    """Name of the file that each item came from."""
    first_names = np.cumsum([0, *map(len, file_names)])
    places = first_names[item_sources] + items.files
    names = pa.array([name for names in file_names for name in names], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(places), names).dictionary_decode()


def row_amounts(
    lengths: NDArray[np.int64], item_sources: NDArray[np.uint16], rows: NDArray[np.integer], num_sources: int
) -> NDArray[np.int64]:
    """(num_rows, num_sources) ids of each source in each row."""
    amounts = np.zeros((int(rows.max()) + 1, num_sources), np.int64)
    np.add.at(amounts, (rows, item_sources), lengths)
    return amounts


def order_rows(amounts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """An order of rows in which every prefix has shares close to those of the whole.

    Windows have the mixture's shares to within a document, so that the set has them at every prefix. Rows
    stand in a random queue; of its first ``ROWS_LOOKED_AHEAD`` the one that leaves the smallest sum of
    squared deviations goes next.

    Args:
        amounts: (num_rows, num_sources) ids of each source in each row.
    """
    queue = rng.permutation(len(amounts))
    shares = amounts.sum(axis=0) / amounts.sum()
    total = np.zeros(amounts.shape[1])
    order = np.empty(len(amounts), np.int64)
    for position in range(len(order)):
        candidates = queue[:ROWS_LOOKED_AHEAD]
        after = total + amounts[candidates]
        deviations = after - after.sum(axis=1, keepdims=True) * shares
        best = int(np.argmin(np.square(deviations).sum(axis=1)))
        order[position] = candidates[best]
        total = after[best]
        queue[1 : best + 1] = queue[:best].copy()  # close the gap, keep the queue's order
        queue = queue[1:]
    return order


def _count(
    items: Items, item_sources: NDArray[np.uint16], footer: PackedShardFooter, counts: NDArray[np.int64]
) -> None:
    starts = items.offsets[:-1]
    is_image = items.ids == footer.vocabulary.img_start_id
    columns = (
        items.parts == 0,
        items.lengths,
        np.add.reduceat(items.loss_mask, starts, dtype=np.int64),
        np.add.reduceat(is_image, starts, dtype=np.int64),
    )
    for column, amounts in enumerate(columns):
        np.add.at(counts[:, column], item_sources, amounts)


def _finish_footer(
    footer: PackedShardFooter, task: PackTask, num_sequences: int, counts: NDArray[np.int64]
) -> PackedShardFooter:
    sources = tuple(
        SourceCounts(source.name, *map(int, row)) for source, row in zip(footer.sources, counts, strict=True)
    )
    fields = {name: getattr(footer, name) for name in footer.__dataclass_fields__}
    return PackedShardFooter(
        **fields | {"shard_index": task.shard_index, "num_sequences": num_sequences, "sources": sources}
    )
