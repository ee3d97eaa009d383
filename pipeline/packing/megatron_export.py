"""Packed sequences as Megatron-LM's ``.bin`` and ``.idx``, one sequence of the index per document.

The ``.bin`` holds the ids of all documents one behind the other, without padding, as uint16 or int32. The
``.idx``, little-endian: the magic ``MMIDIDX\\0\\0``, version 1 (uint64), a code for the id type (uint8; 8 is
uint16, 4 is int32), the number of sequences S (uint64) and of document bounds D = S + 1 (uint64), then S
lengths (int32), S byte offsets (int64) and D document bounds (int64), here 0..S. (Format of Megatron-Core's
``indexed_dataset.py``, written from its reader's side; ``tests/packing/test_megatron_export.py``.)

Megatron re-packs by its own rule (documents in a row, cut at the sequence length), so packed rows do not
survive; their order does. Nor has its format a place for loss masks: its ``GPTDataset`` learns every id.
What is not learned is therefore exported only on request: without its mask, or with the mask as a second
dataset of the same documents, which a dataset class of one's own reads beside the first.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.atomic_write import atomic_path
from schemas.packed_folder import PackedFolder

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
TYPE_CODES = {np.dtype("u1"): 1, np.dtype("<u2"): 8, np.dtype("<i4"): 4}
LossMask = Literal["none", "file"]
"""What becomes of the mask: nothing, or ``PREFIX_loss_mask.bin`` and ``.idx``, uint8, 1 where learned."""


class LossMaskLostError(ValueError):
    """A packed set in which not everything is learned, for a format that cannot say so."""


@dataclass(frozen=True)
class MegatronFiles:
    """What was written."""

    paths: tuple[Path, ...]
    """The ``.bin`` and ``.idx`` of the ids, then those of the loss mask."""
    num_documents: int
    num_ids: int
    num_learned: int
    """Ids that the packed set says are learned; Megatron learns all."""

    @property
    def is_all_learned(self) -> bool:
        """Whether only the first ids of documents, which nothing predicts, are not learned."""
        return self.num_learned == self.num_ids - self.num_documents


def export_megatron(folder: PackedFolder, prefix: Path, loss_mask: LossMask | None = None) -> MegatronFiles:
    """Write ``prefix.bin`` and ``prefix.idx``; parts of split documents are documents of their own.

    Ids beyond 65,535 need int32, as Megatron has no uint32; memory holds the lengths of all documents.

    Raises:
        LossMaskLostError: before anything is written, if not everything is learned and ``loss_mask`` is None.
    """
    rows = range(len(folder))
    lengths = np.concatenate([np.diff(folder[row].cu_seqlens) for row in rows]).astype("<i4")
    num_learned = sum(source.num_learned for source in folder.source_counts)
    mask_prefix = prefix.with_name(f"{prefix.name}_loss_mask")
    files = MegatronFiles(
        _paths(prefix) + (_paths(mask_prefix) if loss_mask == "file" else ()),
        len(lengths),
        folder.num_ids,
        num_learned,
    )
    if loss_mask is None and not files.is_all_learned:
        raise LossMaskLostError(
            f"{folder.folder}: {num_learned:,} of {folder.num_ids:,} ids are learned, and Megatron would"
            f" learn all of them. --loss-mask file writes the mask to {mask_prefix.name}.bin and .idx, for a"
            " dataset class of your own; --loss-mask none means to learn all"
        )
    dtype = np.dtype("<u2") if folder.vocabulary.id_dtype is np.uint16 else np.dtype("<i4")
    for path in _paths(mask_prefix):  # of an earlier export, it would not fit these ids
        path.unlink(missing_ok=True)
    sequences = (folder[row] for row in rows)
    _write_dataset(prefix, (one.ids[: one.num_ids] for one in sequences), lengths, dtype)
    if loss_mask == "file":
        sequences = (folder[row] for row in rows)
        masks = (one.loss_mask[: one.num_ids] for one in sequences)
        _write_dataset(mask_prefix, masks, lengths, np.dtype("u1"))
    return files


def _paths(prefix: Path) -> tuple[Path, Path]:
    return prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")


def _write_dataset(
    prefix: Path, rows: Iterable[NDArray[Any]], lengths: NDArray[np.int32], dtype: np.dtype[Any]
) -> None:
    bin_path, idx_path = _paths(prefix)
    with atomic_path(bin_path) as temporary, temporary.open("wb") as sink:
        for row in rows:
            sink.write(row.astype(dtype).tobytes())
    with atomic_path(idx_path) as temporary, temporary.open("wb") as sink:
        sink.write(index_bytes(lengths, dtype))


def index_bytes(lengths: np.ndarray, dtype: np.dtype[np.generic]) -> bytes:
    """The ``.idx`` file for documents of these lengths."""
    num_documents = len(lengths)
    offsets = np.zeros(num_documents, "<i8")
    np.cumsum(lengths[:-1].astype(np.int64) * dtype.itemsize, out=offsets[1:])
    header = MAGIC + struct.pack("<QBQQ", VERSION, TYPE_CODES[dtype], num_documents, num_documents + 1)
    bounds = np.arange(num_documents + 1, dtype="<i8")
    return header + lengths.astype("<i4").tobytes() + offsets.tobytes() + bounds.tobytes()
