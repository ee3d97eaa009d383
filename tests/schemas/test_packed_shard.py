"""A packed shard gives back what was written, its check finds every breach, other readers read it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.packed_check import check_packed_shard
from schemas.packed_folder import PackedFolder
from schemas.packed_shard import (
    FOOTER_KEY,
    Origins,
    PackedSequence,
    PackedShardError,
    decode_runs,
    encode_runs,
    packed_schema,
)
from schemas.packed_writer import PackedShardWriter, find_problem, find_unsound_row, row_batch
from schemas.vocabulary import VocabularyLayout
from tests.schemas.packed_rows import (
    LAYOUT,
    SEQ_LENGTH,
    assert_same,
    make_footer,
    make_sequences,
    write_packed,
)


@given(mask=st.lists(st.booleans(), max_size=50))
def test_run_lengths_keep_the_mask(mask: list[bool]) -> None:
    runs = encode_runs(np.array(mask, np.bool_))
    assert decode_runs(runs).tolist() == mask
    assert np.all(runs[1:] > 0), "no more runs than needed"


@given(
    seed=st.integers(0, 2**32), num_sequences=st.integers(1, 150), base_size=st.sampled_from([1000, 128_256])
)
@settings(deadline=None, max_examples=20)
def test_reading_gives_back_what_was_written(
    seed: int, num_sequences: int, base_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layout = VocabularyLayout(base_size)
    sequences = make_sequences(num_sequences, seed, layout)
    folder = tmp_path_factory.mktemp("packed")
    write_packed(folder / "packed-00000.parquet", sequences, vocabulary=layout)
    packed = PackedFolder(folder)
    assert len(packed) == num_sequences
    assert packed[0].ids.dtype == (np.uint16 if base_size == 1000 else np.uint32)
    for index, written in enumerate(sequences):
        read = packed.with_origins(index)
        assert_same(packed[index], written)
        assert_same(read, written)
        assert read.origins is not None
        assert written.origins is not None
        assert list(read.origins.shards) == list(written.origins.shards)
        for name in ("rows", "epochs", "parts"):
            assert np.array_equal(getattr(read.origins, name), getattr(written.origins, name))
    assert check_packed_shard(folder / "packed-00000.parquet") == packed.footer


def test_labels_are_the_next_learned_id_and_never_cross_documents() -> None:
    ids = np.array([1, 10, 11, 1, 20, 0], np.uint16)
    mask = np.array([False, True, False, False, True])
    sequence = PackedSequence(ids, np.array([0, 3, 5], np.int32), encode_runs(mask), np.zeros(2, np.uint16))
    assert sequence.labels.tolist() == [10, -100, -100, 20, -100, -100]
    assert sequence.loss_mask.tolist() == [False, True, False, False, True, False]


def test_the_same_sequences_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_packed(tmp_path / name, make_sequences(70)) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_without_footer_is_no_packed_shard(tmp_path: Path) -> None:
    path = tmp_path / "packed-00000.parquet"
    with PackedShardWriter(path, SEQ_LENGTH, LAYOUT) as writer:
        writer.write(make_sequences(1)[0])
    with pytest.raises(PackedShardError, match=r"packed-00000\.parquet: no seed_shards.packed_shard"):
        PackedFolder(tmp_path)


def test_the_footer_has_to_tell_what_was_written(tmp_path: Path) -> None:
    sequences = make_sequences(2)
    with PackedShardWriter(tmp_path / "a", SEQ_LENGTH, LAYOUT) as writer:
        writer.write(sequences[0])
        with pytest.raises(PackedShardError, match=r"wrote \(1, "):
            writer.close(make_footer(sequences))


BREACHES = {
    "none": lambda row: row,
    "starts late": lambda row: replace(row, cu_seqlens=np.append(np.int32(1), row.cu_seqlens[1:])),
    "does not increase": lambda row: replace(row, cu_seqlens=np.append(row.cu_seqlens, row.cu_seqlens[-1])),
    "too long": lambda row: replace(row, cu_seqlens=np.append(row.cu_seqlens[:-1], np.int32(SEQ_LENGTH + 1))),
    "runs too short": lambda row: replace(row, loss_runs=row.loss_runs[:-1]),
    "negative run": lambda row: replace(row, loss_runs=np.append(row.loss_runs, [-3, 3]).astype(np.int32)),
    "learned start": lambda row: replace(row, loss_runs=np.array([0, row.num_ids], np.int32)),
    "a source too many": lambda row: replace(row, sources=np.append(row.sources, np.uint16(0))),
    "a part too few": lambda row: replace(row, origins=replace(row.origins, parts=row.origins.parts[1:])),
}
"""What can be wrong with a row."""


class TestBreaches:
    """The writer refuses malformed rows; the check finds files that something else damaged."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"ids": np.zeros(5, np.uint16)}, "ids have shape"),
            ({"cu_seqlens": np.array([0, 9, 9], np.int32)}, "start at 0 and increase"),
            ({"cu_seqlens": np.array([0, 97], np.int32)}, "beyond seq_length"),
            ({"loss_runs": np.array([1], np.int32)}, "loss_runs add up to 1"),
            ({"loss_runs": np.array([0, 10], np.int32)}, "first id of a document"),
            ({"sources": np.zeros(3, np.uint16)}, "sources has 3 entries for 1 documents"),
        ],
    )
    def test_writer_refuses(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        origins = Origins(["a"], np.zeros(1, np.uint32), np.zeros(1, np.uint16), np.zeros(1, np.uint16))
        fields = {
            "ids": np.zeros(SEQ_LENGTH, np.uint16),
            "cu_seqlens": np.array([0, 10], np.int32),
            "loss_runs": np.array([1, 9], np.int32),
            "sources": np.zeros(1, np.uint16),
            "origins": origins,
        }
        with (
            PackedShardWriter(tmp_path / "a", SEQ_LENGTH, LAYOUT) as writer,
            pytest.raises(ValueError, match=message),
        ):
            writer.write(PackedSequence(**fields | changes))

    @given(seed=st.integers(0, 2**32), bad=st.integers(0, 4), kind=st.sampled_from(list(BREACHES)))
    @settings(deadline=None, max_examples=60)
    def test_batches_are_checked_as_rows_are(self, seed: int, bad: int, kind: str) -> None:
        """Of several rows the one that breaks the contract is found, and only then."""
        schema, rows = packed_schema(SEQ_LENGTH, LAYOUT), make_sequences(5, seed)
        rows[bad] = BREACHES[kind](rows[bad])
        table = pa.Table.from_batches([row_batch(row, schema) for row in rows]).combine_chunks()
        (batch,) = table.to_batches()
        expected = [index for index, row in enumerate(rows) if find_problem(row, SEQ_LENGTH)]
        assert find_unsound_row(batch, SEQ_LENGTH) == (expected[0] if expected else None)
        assert bool(expected) == (kind != "none")

    def rewrite(self, path: Path, column: str, change: Any) -> None:
        """Apply ``change`` to the first cell of a column, everything else as it was."""
        metadata = pq.read_metadata(path).metadata[FOOTER_KEY]
        table = pq.read_table(path)
        cells = table.column(column).to_pylist()
        cells[0] = change(cells[0])
        place = table.schema.names.index(column)
        table = table.set_column(
            place, table.schema.field(column), pa.array(cells, table.schema.types[place])
        )
        pq.write_table(table.replace_schema_metadata({FOOTER_KEY: metadata}), path)

    @pytest.mark.parametrize(
        ("column", "change", "message"),
        [
            ("ids", lambda cell: b"\xff\xff" + cell[2:], "outside the vocabulary"),
            ("ids", lambda cell: cell[:-2] + b"\x05\x00", "not all the padding id"),
            ("ids", lambda cell: (1000 + 8192).to_bytes(2, "little") + cell[2:], "a span is cut"),
            ("ids", lambda cell: (1000).to_bytes(2, "little") + cell[2:], "outside <img>"),
            ("sources", lambda cell: [2] * len(cell), "source 2 is none of the 2 sources"),
            ("sources", lambda cell: [1 - source for source in cell], "the footer says"),
            ("parts", lambda cell: [1] * len(cell), "the footer says"),
            ("cu_seqlens", lambda cell: [0, *cell[2:]], "sources has"),
        ],
    )
    def test_check_finds(self, column: str, change: Any, message: str, tmp_path: Path) -> None:
        path = write_packed(tmp_path / "packed-00000.parquet", make_sequences(3))
        self.rewrite(path, column, change)
        with pytest.raises(PackedShardError, match=f"packed-00000.parquet: .*{message}"):
            check_packed_shard(path)

    def test_a_flipped_bit_is_found(self, tmp_path: Path) -> None:
        """Wherever it is, pages or footer, or it changes nothing that is read."""
        path = write_packed(tmp_path / "packed-00000.parquet", make_sequences(70))
        sound, table = path.read_bytes(), pq.read_table(path)
        rng, num_found = np.random.default_rng(0), 0
        for place in rng.integers(len(sound), size=400).tolist():
            data = bytearray(sound)
            data[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            try:
                check_packed_shard(path)
                assert pq.read_table(path).equals(table), place
            except PackedShardError:
                num_found += 1
        assert num_found > 350

    def test_a_reader_finds_damaged_lists(self, tmp_path: Path) -> None:
        path = write_packed(tmp_path / "packed-00000.parquet", make_sequences(70))
        group, data = pq.read_metadata(path).row_group(1), bytearray(path.read_bytes())
        for index in range(1, group.num_columns):
            chunk = group.column(index)
            data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
        path.write_bytes(data)
        folder = PackedFolder(tmp_path)
        assert folder.with_origins(0).num_ids
        with pytest.raises(
            PackedShardError, match=r"packed-00000\.parquet: row group 1: .*seed-pack validate"
        ):
            folder[64]

    @pytest.mark.parametrize("column", ["ids", "shards.list.element"])
    def test_a_page_that_arrow_cannot_read(self, column: str, tmp_path: Path) -> None:
        path = write_packed(tmp_path / "packed-00000.parquet", make_sequences(3))
        group = pq.read_metadata(path).row_group(0)
        chunk = next(
            group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == column
        )
        data = bytearray(path.read_bytes())
        data[chunk.data_page_offset : chunk.data_page_offset + 64] = b"\xff" * 64
        path.write_bytes(data)
        with pytest.raises(PackedShardError, match=r"packed-00000\.parquet: \w+"):
            check_packed_shard(path)

    def test_truncated_file(self, tmp_path: Path) -> None:
        path = write_packed(tmp_path / "packed-00000.parquet", make_sequences(3))
        path.write_bytes(path.read_bytes()[:-100])
        for read in (PackedFolder, lambda folder: check_packed_shard(folder / path.name)):
            with pytest.raises(PackedShardError, match=r"packed-00000.*magic bytes"):
                read(tmp_path)


class TestOtherReaders:
    """Plain Parquet: ids are little-endian binary, everything else lists."""

    def check(self, rows: list[dict[str, Any]], written: list[PackedSequence]) -> None:
        for row, sequence in zip(rows, written, strict=True):
            assert np.array_equal(np.frombuffer(row["ids"], "<u2"), sequence.ids)
            assert list(row["cu_seqlens"]) == sequence.cu_seqlens.tolist()
            assert list(row["shards"]) == list(sequence.origins.shards)

    def test_datasets(self, tmp_path: Path) -> None:
        from datasets import load_dataset

        written = make_sequences(70)
        path = write_packed(tmp_path / "packed-00000.parquet", written)
        rows = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        self.check(list(rows), written)

    def test_duckdb(self, tmp_path: Path) -> None:
        import duckdb

        written = make_sequences(70)
        path = write_packed(tmp_path / "packed-00000.parquet", written)
        self.check(duckdb.sql(f"select * from '{path}'").to_arrow_table().to_pylist(), written)

    def test_polars(self, tmp_path: Path) -> None:
        import polars

        written = make_sequences(70)
        path = write_packed(tmp_path / "packed-00000.parquet", written)
        self.check(polars.read_parquet(path).to_dicts(), written)
