"""Shuffling, the second stage: one bucket of a source in one epoch, from all chunks, sorted by key.

Bucket after bucket is then the shuffled order of the source. What a task holds is one bucket.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.packing.epoch_range import EpochRange
from pipeline.packing.rendered import Items, ItemsFile, items_schema, write_items

ITEMS_PER_BATCH = 4096
"""Items of one record batch of a shuffled file: what reading a range of it costs at least."""


@dataclass(frozen=True)
class ShuffleTask:
    """One bucket, or a part of one, from all the files that rendering wrote for a source and epoch."""

    bucket: int
    """Among those of ``epoch_range``."""
    rendered: tuple[Path, ...]
    output: Path
    epoch_range: EpochRange
    """What was rendered, with as many buckets as are shuffled: ``splits`` for each that was rendered."""
    splits: int
    """1 where the estimate before rendering was right; more keep what a task holds small all the same."""


def shuffle_bucket(task: ShuffleTask) -> None:
    """Write the bucket's items in the order of their keys; ties (parts of a document) in reading order."""
    groups = []
    for path in task.rendered:
        file = ItemsFile(path)
        items = file[task.bucket // task.splits]
        if task.splits > 1:
            items = items.take(np.flatnonzero(task.epoch_range.buckets(items.keys) == task.bucket))
        groups.append(items)
    items = Items.concatenate(groups)
    order = np.lexsort((items.parts, items.rows, items.files, items.keys))
    items = items.take(order)
    counts = {
        "items": len(items),
        "ids": len(items.ids),
        "documents": int(np.count_nonzero(items.parts == 0)),
    }
    bounds = range(0, len(items), ITEMS_PER_BATCH)
    batches = [items.slice(start, min(start + ITEMS_PER_BATCH, len(items))) for start in bounds]
    write_items(task.output, batches, counts, items_schema(items.ids.dtype.type))


class ShuffledSource:
    """All items of a source in shuffled order, epoch after epoch: the files of its buckets in a row."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        sizes = []
        for path in paths:
            file = ItemsFile(path)
            sizes.append(int(file.counts["items"]))
            file.close()
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def lengths_from(self, start: int, at_least: int) -> tuple[np.ndarray, np.ndarray]:
        """Lengths and part numbers of the items from ``start`` on, ``at_least`` many unless the end comes."""
        lengths, parts = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
        position = start
        while position < min(start + at_least, len(self)):
            file, batch, offset = self._locate(position)
            batch_lengths, batch_parts = file.lengths(batch)
            lengths.append(batch_lengths[offset:])
            parts.append(batch_parts[offset:].copy())
            position += len(lengths[-1])
            file.close()
        return np.concatenate(lengths), np.concatenate(parts)

    def count_left(self, start: int) -> tuple[int, int]:
        """Documents and ids among the items from ``start`` on."""
        num_documents, num_ids, position = 0, 0, start
        while position < len(self):
            lengths, parts = self.lengths_from(position, 1)
            num_documents += int(np.count_nonzero(parts == 0))
            num_ids += int(lengths.sum())
            position += len(parts)
        return num_documents, num_ids

    def read(self, start: int, stop: int) -> list[Items]:
        """Items ``start`` to ``stop``, in groups."""
        groups, position = list[Items](), start
        while position < stop:
            file, batch, offset = self._locate(position)
            items = file[batch]
            end = min(len(items), offset + stop - position)
            groups.append(items.slice(offset, end))
            position += end - offset
        return groups

    def _locate(self, position: int) -> tuple[ItemsFile, int, int]:
        """File, record batch and place in it of an item."""
        index = int(np.searchsorted(self._starts, position, side="right")) - 1
        within = position - int(self._starts[index])
        return ItemsFile(self._paths[index]), within // ITEMS_PER_BATCH, within % ITEMS_PER_BATCH
