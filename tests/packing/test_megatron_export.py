"""Megatron's .bin and .idx: byte by byte here, and with Megatron's own reader where it is installed."""

import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.packing.megatron_export import LossMaskLostError, export_megatron, index_bytes
from schemas.packed_folder import PackedFolder
from schemas.vocabulary import VocabularyLayout
from tests.schemas.packed_rows import make_sequences, write_packed


def exported(folder: Path, base_size: int) -> tuple[PackedFolder, Path]:
    layout = VocabularyLayout(base_size)
    sequences = make_sequences(70, 0, layout)
    write_packed(folder / "packed-00000.parquet", sequences, vocabulary=layout)
    packed = PackedFolder(folder)
    files = export_megatron(packed, folder / "out" / "seed.v1", "file")
    assert [path.name for path in files.paths[:2]] == ["seed.v1.bin", "seed.v1.idx"]
    assert files.num_ids == packed.num_ids
    return packed, folder / "out" / "seed.v1"


def documents_of(packed: PackedFolder) -> list[np.ndarray]:
    rows = [packed[index] for index in range(len(packed))]
    return [part for row in rows for part in np.split(row.ids[: row.num_ids], row.cu_seqlens[1:-1])]


def test_index_bytes() -> None:
    """Three documents of 2, 1 and 3 ids, written out by hand."""
    expected = (
        b"MMIDIDX\x00\x00"
        + bytes([1, 0, 0, 0, 0, 0, 0, 0])  # version
        + bytes([8])  # uint16
        + bytes([3, 0, 0, 0, 0, 0, 0, 0])  # sequences
        + bytes([4, 0, 0, 0, 0, 0, 0, 0])  # document bounds
        + struct.pack("<3i", 2, 1, 3)  # lengths
        + struct.pack("<3q", 0, 4, 6)  # byte offsets
        + struct.pack("<4q", 0, 1, 2, 3)  # bounds
    )
    assert index_bytes(np.array([2, 1, 3]), np.dtype("<u2")) == expected


@pytest.mark.parametrize(("base_size", "dtype", "code"), [(1000, "<u2", 8), (128_256, "<i4", 4)])
def test_files_hold_every_document_without_padding(
    base_size: int, dtype: str, code: int, tmp_path: Path
) -> None:
    packed, prefix = exported(tmp_path, base_size)
    index = Path(f"{prefix}.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, type_code, num_sequences, num_bounds = struct.unpack("<QBQQ", index[9:34])
    assert (version, type_code, num_bounds) == (1, code, num_sequences + 1)
    lengths = np.frombuffer(index, "<i4", num_sequences, 34)
    offsets = np.frombuffer(index, "<i8", num_sequences, 34 + 4 * num_sequences)
    assert len(index) == 34 + 12 * num_sequences + 8 * num_bounds
    ids = np.fromfile(f"{prefix}.bin", dtype)
    documents = documents_of(packed)
    assert num_sequences == len(documents)
    for document, length, offset in zip(documents, lengths, offsets, strict=True):
        start = offset // np.dtype(dtype).itemsize
        assert np.array_equal(ids[start : start + length], document)


def test_what_is_not_learned_is_never_exported_unasked(tmp_path: Path) -> None:
    """Megatron learns every id: refused before anything is written, or with the mask beside, or asked for."""
    packed, prefix = exported(tmp_path, 1000)
    rows = [packed[index] for index in range(len(packed))]
    mask = np.concatenate([row.loss_mask[: row.num_ids] for row in rows])
    files, other = sorted(prefix.parent.iterdir()), prefix.with_name("other")
    assert [path.name[len("seed.v1") :] for path in files] == [
        ".bin",
        ".idx",
        "_loss_mask.bin",
        "_loss_mask.idx",
    ]
    assert np.array_equal(np.fromfile(f"{prefix}_loss_mask.bin", "u1"), mask)
    lengths = [len(document) for document in documents_of(packed)]
    assert files[3].read_bytes() == index_bytes(np.array(lengths), np.dtype("u1"))
    with pytest.raises(
        LossMaskLostError, match=f"{mask.sum():,} of {mask.size:,} ids are learned, and Megatron"
    ):
        export_megatron(packed, other)
    assert sorted(prefix.parent.iterdir()) == files
    assert export_megatron(packed, prefix, "none").num_learned == mask.sum()
    assert sorted(prefix.parent.iterdir()) == files[:2], "a mask that an earlier export left does not stay"


@pytest.mark.slow
@pytest.mark.parametrize("base_size", [1000, 128_256])
def test_megatron_reads_it(base_size: int, tmp_path: Path) -> None:
    reader = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is missing")
    packed, prefix = exported(tmp_path, base_size)
    dataset = reader.IndexedDataset(str(prefix), mmap=True)
    documents = documents_of(packed)
    assert len(dataset) == len(documents)
    assert dataset.document_indices.tolist() == list(range(len(documents) + 1))
    masks = reader.IndexedDataset(f"{prefix}_loss_mask", mmap=True)
    for index, document in enumerate(documents):
        assert np.array_equal(dataset[index], document)
        assert masks[index].dtype == np.uint8
        assert masks[index].shape == document.shape
