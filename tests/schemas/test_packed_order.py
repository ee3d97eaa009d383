"""The order of reading is a pure function of one integer; rows are found in any shard, on any file system."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.packed_folder import OPEN_SHARDS, PackedFolder
from schemas.packed_order import permute, stored_index
from schemas.packed_shard import FOOTER_KEY, PackedShardError
from tests.schemas.packed_rows import assert_same, make_sequences, write_packed

NUM_SEQUENCES = 211  # prime: no batch size divides it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PackedFolder:
    """Three shards of unequal size."""
    path = tmp_path_factory.mktemp("packed")
    sequences = make_sequences(NUM_SEQUENCES)
    for index, (start, end) in enumerate([(0, 70), (70, 75), (75, NUM_SEQUENCES)]):
        write_packed(
            path / f"packed-{index:05d}.parquet", sequences[start:end], shard_index=index, num_shards=3
        )
    return PackedFolder(path)


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 3000), key=st.binary(max_size=16))
def test_permute_is_a_permutation(length: int, key: bytes) -> None:
    assert sorted(permute(index, length, key) for index in range(length)) == list(range(length))


def test_permute_looks_random() -> None:
    length = 10_000
    image = np.array([permute(index, length, b"k") for index in range(length)])
    assert abs(np.corrcoef(np.arange(length), image)[0, 1]) < 0.03
    assert np.mean(image == np.arange(length)) < 0.001
    other = np.array([permute(index, length, b"l") for index in range(length)])
    assert np.mean(image == other) < 0.001


def test_permute_serves_lengths_beyond_memory() -> None:
    length = 10**15
    assert len({permute(index, length, b"") for index in range(100)}) == 100


def test_every_epoch_holds_every_sequence_and_later_ones_differ() -> None:
    epochs = [[stored_index(epoch * 500 + i, 500, seed=7) for i in range(500)] for epoch in range(3)]
    assert epochs[0] == list(range(500))
    assert all(sorted(epoch) == epochs[0] for epoch in epochs)
    assert epochs[1] != epochs[2]
    assert [stored_index(500 + i, 500, seed=8) for i in range(500)] != epochs[1]


def test_folder_reads_over_shard_bounds(folder: PackedFolder) -> None:
    for index, written in enumerate(make_sequences(NUM_SEQUENCES)):
        assert_same(folder[index], written)
    with pytest.raises(IndexError, match="211"):
        folder[NUM_SEQUENCES]
    with pytest.raises(IndexError):
        folder[-1]


class TestFolder:
    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(PackedShardError, match="seed-pack build"):
            PackedFolder(tmp_path)

    def test_missing_shard(self, tmp_path: Path) -> None:
        write_packed(tmp_path / "packed-00001.parquet", make_sequences(2), shard_index=1, num_shards=3)
        with pytest.raises(PackedShardError, match=r"1 of 3 packed shards, missing \[0, 2\]"):
            PackedFolder(tmp_path)

    def test_two_builds(self, tmp_path: Path) -> None:
        write_packed(tmp_path / "packed-00000.parquet", make_sequences(2), num_shards=2)
        write_packed(
            tmp_path / "packed-00001.parquet", make_sequences(2), shard_index=1, num_shards=2, mixture="x"
        )
        with pytest.raises(PackedShardError, match="different builds"):
            PackedFolder(tmp_path)

    def test_any_file_system(self, folder: PackedFolder) -> None:
        import fsspec
        import pyarrow.fs

        for filesystem in (fsspec.filesystem("file"), pyarrow.fs.LocalFileSystem()):
            remote = PackedFolder(folder.folder, filesystem=filesystem)
            assert_same(remote[100], folder[100])
            assert remote.source_counts == folder.source_counts


def test_more_shards_than_a_process_may_open_files(tmp_path: Path) -> None:
    """Descriptors stay below a fixed number while all rows are read, and held, in any order."""
    num_shards, sequences = 3 * OPEN_SHARDS, make_sequences(3)
    for index in range(num_shards):
        rows = [sequences[index % 3]]
        path = tmp_path / f"packed-{index:05d}.parquet"
        write_packed(path, rows, shard_index=index, num_shards=num_shards)
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("this system does not list a process's open files")
    before = len(list(descriptors.iterdir()))
    folder = PackedFolder(tmp_path)
    held = [folder[index] for index in (*range(num_shards), *range(0, num_shards, 7))]
    assert len(list(descriptors.iterdir())) - before <= OPEN_SHARDS + 4
    for index in range(num_shards):
        assert_same(held[index], sequences[index % 3])
        assert folder.with_origins(index).origins is not None


def test_mapped_ids_are_those_that_parquet_reads(folder: PackedFolder) -> None:
    """Local files are mapped, others read by Arrow: the same rows."""
    import pyarrow.fs

    read = PackedFolder(folder.folder, filesystem=pyarrow.fs.LocalFileSystem())
    for index in range(NUM_SEQUENCES):
        assert_same(folder[index], read[index])


def test_a_file_rewritten_by_another_program_is_refused(folder: PackedFolder, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    for path in folder.paths:
        footer = pq.read_metadata(path).metadata[FOOTER_KEY]
        table = pq.read_table(path).replace_schema_metadata({FOOTER_KEY: footer})
        pq.write_table(table, tmp_path / Path(path).name, compression="zstd", row_group_size=64)
    with pytest.raises(PackedShardError, match="not one plain uncompressed page"):
        PackedFolder(tmp_path)[0]
