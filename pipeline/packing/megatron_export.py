"""Packed sequences as Megatron-LM's ``.bin`` and ``.idx``, one sequence of the index per document.

The ``.bin`` holds the ids of all documents one behind the other, without padding, as uint16 or int32. The
``.idx``, little-endian: the magic ``MMIDIDX\\0\\0``, version 1 (uint64), a code for the id type (uint8; 8 is
uint16, 4 is int32), the number of sequences S (uint64) and of document bounds D = S + 1 (uint64), then S
lengths (int32), S byte offsets (int64) and D document bounds (int64), here 0..S. (Format of Megatron-Core's
``indexed_dataset.py``, written from its reader's side; ``tests/packing/test_megatron_export.py``.)

Megatron re-packs by its own rule (documents in a row, cut at the sequence length), so loss masks and packed
rows do not survive: the export is for training plain next-token models, and the order of the mixture holds.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas.atomic_write import atomic_path
from schemas.packed_folder import PackedFolder

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
TYPE_CODES = {np.dtype("<u2"): 8, np.dtype("<i4"): 4}


@dataclass(frozen=True)
class MegatronFiles:
    """What was written."""

    bin_path: Path
    idx_path: Path
    num_documents: int
    num_ids: int


def export_megatron(folder: PackedFolder, prefix: Path) -> MegatronFiles:
    """Write ``prefix.bin`` and ``prefix.idx``; parts of split documents are documents of their own.

    Ids beyond 65,535 need int32, as Megatron has no uint32; memory holds the lengths of all documents.
    """
    dtype = np.dtype("<u2") if folder.vocabulary.id_dtype is np.uint16 else np.dtype("<i4")
    bin_path, idx_path = (prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx"))
    lengths = []
    with atomic_path(bin_path) as temporary, temporary.open("wb") as sink:
        for index in range(len(folder)):
            sequence = folder[index]
            sink.write(sequence.ids[: sequence.num_ids].astype(dtype).tobytes())
            lengths.append(np.diff(sequence.cu_seqlens))
    all_lengths = np.concatenate(lengths).astype("<i4")
    with atomic_path(idx_path) as temporary, temporary.open("wb") as sink:
        sink.write(index_bytes(all_lengths, dtype))
    return MegatronFiles(bin_path, idx_path, len(all_lengths), int(all_lengths.sum(dtype=np.int64)))


def index_bytes(lengths: np.ndarray, dtype: np.dtype[np.generic]) -> bytes:
    """The ``.idx`` file for documents of these lengths."""
    num_documents = len(lengths)
    offsets = np.zeros(num_documents, "<i8")
    np.cumsum(lengths[:-1].astype(np.int64) * dtype.itemsize, out=offsets[1:])
    header = MAGIC + struct.pack("<QBQQ", VERSION, TYPE_CODES[dtype], num_documents, num_documents + 1)
    bounds = np.arange(num_documents + 1, dtype="<i8")
    return header + lengths.astype("<i4").tobytes() + offsets.tobytes() + bounds.tobytes()
