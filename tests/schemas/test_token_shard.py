"""A token shard gives back what was written, in any reader, in 52 bytes an image; its counts are true."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.document import Document, ImageSegment, Role, TextSegment
from schemas.fingerprint import Fingerprint
from schemas.token_shard import (
    FOOTER_KEY,
    SCHEMA,
    ShardCounts,
    TokenShardError,
    TokenShardFooter,
    TokenShardWriter,
    check_token_shard,
    read_documents,
    read_footer,
)

FINGERPRINT = Fingerprint({"weights": "abc", "precision": "fp32"})


def footer_for(documents: list[Document], **changes: Any) -> TokenShardFooter:
    num_images = sum(len(document.images) for document in documents)
    counts = ShardCounts(
        samples_read=len(documents),
        documents_written=len(documents),
        images_read=num_images,
        images_written=num_images,
    )
    fields = {
        "kind": "pairs",
        "source": "data/00000.tar",
        "source_bytes": 1,
        "source_complete": True,
        "fingerprint": FINGERPRINT,
        "counts": counts,
    }
    return TokenShardFooter(**fields | changes)


def write_shard(path: Path, documents: list[Document], **changes: Any) -> Path:
    with TokenShardWriter(path) as writer:
        for document in documents:
            writer.write(document)
        writer.close(footer_for(documents, **changes))
    return path


def rewrite(path: Path, table: pa.Table) -> None:
    """Replace the rows of a token shard and keep its footer."""
    footer = pq.read_metadata(path).metadata[FOOTER_KEY]
    schema = SCHEMA.with_metadata({FOOTER_KEY: footer})
    pq.write_table(pa.Table.from_arrays(table.columns, schema=schema), path)


def image(seed: int = 0, **fields: Any) -> ImageSegment:
    return ImageSegment(np.random.default_rng(seed).integers(0, 8192, 32, dtype=np.uint16), **fields)


def pair(index: int) -> Document:
    return Document(f"{index:09d}", (image(index), TextSegment(f"caption {index}")), '{"width": 3}')


utf8_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def any_document(draw: st.DrawFn) -> Document:
    has_roles, has_times = draw(st.booleans()), draw(st.booleans())
    segments: list[TextSegment | ImageSegment] = []
    for seed in draw(st.lists(st.integers(0, 2**31), max_size=6)):
        role = draw(st.sampled_from(Role)) if has_roles else None
        if draw(st.booleans()):
            segments.append(image(seed, role=role, time_s=float(np.float32(seed)) if has_times else None))
        else:
            segments.append(TextSegment(draw(utf8_text), role))
    return Document(draw(utf8_text), tuple(segments), draw(st.none() | utf8_text))


@given(documents=st.lists(any_document(), max_size=8))
@settings(deadline=None, max_examples=60)
def test_reading_gives_back_the_documents_that_were_written(
    documents: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_shard(tmp_path_factory.mktemp("shard") / "a.parquet", documents)
    assert list(read_documents(path, batch_rows=3)) == documents
    assert check_token_shard(path) == footer_for(documents)


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    documents = [pair(index) for index in range(100)]
    first, second = (write_shard(tmp_path / name, documents) for name in ("a.parquet", "b.parquet"))
    assert first.read_bytes() == second.read_bytes()


def test_long_texts_end_a_row_group_early(tmp_path: Path) -> None:
    documents = [Document(str(index), (TextSegment("x" * (9 << 20)),)) for index in range(9)]
    path = write_shard(tmp_path / "a.parquet", documents)
    assert pq.read_metadata(path).num_row_groups == 3
    assert list(read_documents(path)) == documents


@pytest.mark.parametrize("part", ["key", "text", "metadata"])
def test_a_row_group_is_bounded_in_bytes_not_in_characters(tmp_path: Path, part: str) -> None:
    long = "鍵" * (6 << 20)  # 18 MiB in UTF-8
    fields = {"key": "k", "text": "t", "metadata": "{}"} | {part: long}
    document = Document(fields["key"], (TextSegment(fields["text"]),), fields["metadata"])
    path = write_shard(tmp_path / "a.parquet", [document] * 3)
    assert pq.read_metadata(path).num_row_groups == 2


def test_uniform_codes_take_at_most_53_bytes_an_image(tmp_path: Path) -> None:
    documents = [Document("", (image(index),)) for index in range(10_000)]
    path = write_shard(tmp_path / "a.parquet", documents)
    codes_column = pq.read_metadata(path).row_group(0).column(3)
    assert codes_column.path_in_schema == "codes.list.element"
    assert codes_column.total_compressed_size / 10_000 <= 53
    assert path.stat().st_size / 10_000 <= 53, "keys, kinds and footer included"


class TestOtherReaders:
    """The shard is plain Parquet: no code of ours is needed to read it."""

    @pytest.fixture(scope="class")
    def documents(self) -> list[Document]:
        video = Document("clip", (image(7, time_s=0.5), image(8, time_s=1.5), TextSegment("a clip")))
        return [pair(0), pair(1), video]

    @pytest.fixture(scope="class")
    def path(self, documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_shard(tmp_path_factory.mktemp("readers") / "a.parquet", documents)

    def check(self, rows: list[dict[str, Any]], documents: list[Document]) -> None:
        assert [row["key"] for row in rows] == [document.key for document in documents]
        assert [list(row["texts"]) for row in rows] == [document.texts for document in documents]
        for row, document in zip(rows, documents, strict=True):
            expected = np.concatenate([segment.codes for segment in document.images])
            assert np.array_equal(np.asarray(row["codes"], dtype=np.int64), expected)
            assert list(row["kinds"]) == [int(isinstance(s, ImageSegment)) for s in document.segments]

    def test_datasets(self, path: Path, documents: list[Document], tmp_path: Path) -> None:
        from datasets import load_dataset

        dataset = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path))
        assert dataset.features["codes"].feature.dtype == "uint16"
        self.check(list(dataset), documents)

    def test_duckdb(self, path: Path, documents: list[Document]) -> None:
        import duckdb

        relation = duckdb.sql(f"select key, kinds, texts, codes from '{path}'")
        self.check([dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()], documents)

    def test_polars(self, path: Path, documents: list[Document]) -> None:
        import polars

        self.check(polars.read_parquet(path).to_dicts(), documents)

    def test_pandas(self, path: Path, documents: list[Document]) -> None:
        import pandas

        self.check(pandas.read_parquet(path).to_dict("records"), documents)


@pytest.fixture(scope="module")
def small_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("small") / "a.parquet", [pair(index) for index in range(4)])


def flip_bit(path: Path, data: bytes, bit: int) -> None:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


class TestBitDamage:
    """Pages carry checksums, and readers verify them."""

    def test_a_flipped_bit_in_the_codes_is_refused(self, small_shard: Path, tmp_path: Path) -> None:
        column = pq.read_metadata(small_shard).row_group(0).column(3)
        end = column.data_page_offset + column.total_compressed_size
        for bit in range(8 * (end - 4 * 52), 8 * end, 13):  # page data: no page header is that far behind
            flip_bit(tmp_path / "b.parquet", small_shard.read_bytes(), bit)
            with pytest.raises(TokenShardError, match=r"b\.parquet: "):
                check_token_shard(tmp_path / "b.parquet")

    @settings(deadline=None, max_examples=400)
    @given(data=st.data())
    def test_a_flipped_bit_anywhere_before_the_footer_never_changes_a_document(
        self, data: st.DataObject, small_shard: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        group = pq.read_metadata(small_shard).row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
        end = max(column.data_page_offset + column.total_compressed_size for column in columns)
        path = tmp_path_factory.mktemp("flip") / "b.parquet"
        flip_bit(path, small_shard.read_bytes(), data.draw(st.integers(0, 8 * end - 1)))
        with suppress(TokenShardError):  # a bit of a page header may decide nothing
            assert list(read_documents(path)) == [pair(index) for index in range(4)]


class TestRefusals:
    """A file that breaks the contract is named, with what is wrong."""

    def test_counts_that_do_not_balance_are_not_written(self, tmp_path: Path) -> None:
        counts = ShardCounts(samples_read=2, documents_written=1, images_read=1, images_written=1)
        with pytest.raises(TokenShardError, match=r"00000\.tar: 2 samples read, but 1 written"):
            write_shard(tmp_path / "a.parquet", [pair(0)], counts=counts)

    def test_counts_that_differ_from_the_rows_are_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(TokenShardError, match="wrote"):
            write_shard(tmp_path / "a.parquet", [pair(0)], counts=ShardCounts())

    def test_an_unfinished_file_is_no_token_shard(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        with TokenShardWriter(path) as writer:
            writer.write(pair(0))
        with pytest.raises(TokenShardError, match=r"a\.parquet: no seed_shards\.token_shard entry"):
            read_footer(path)

    def test_a_file_that_is_no_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_text("<html>")
        with pytest.raises(TokenShardError, match=r"a\.parquet"):
            read_footer(tmp_path / "a.parquet")

    def test_a_newer_format_version(self, tmp_path: Path) -> None:
        text = json.dumps(json.loads(footer_for([]).to_json()) | {"format_version": 2})
        with pytest.raises(ValueError, match="format version 2"):
            TokenShardFooter.from_json(text)

    def test_a_fingerprint_that_was_tampered_with(self) -> None:
        text = footer_for([]).to_json().replace('"abc"', '"abd"')
        with pytest.raises(ValueError, match="does not match its components"):
            TokenShardFooter.from_json(text)

    def test_rows_that_disagree_with_the_footer(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.parquet", [pair(0), pair(1)])
        rewrite(path, pq.read_table(path).slice(0, 1))
        with pytest.raises(TokenShardError, match="holds 1 documents and 1 images, footer says"):
            check_token_shard(path)

    def test_segments_without_their_text(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.parquet", [pair(0)])
        table = pq.read_table(path)
        rewrite(path, table.set_column(2, "texts", pa.array([[]], table.schema.field("texts").type)))
        with pytest.raises(TokenShardError, match="document '000000000': texts, codes, roles and times"):
            check_token_shard(path)

    @pytest.mark.parametrize("name", ["roles", "times_s"])
    def test_empty_lists_where_null_is_meant(self, tmp_path: Path, name: str) -> None:
        path = write_shard(tmp_path / "a.parquet", [pair(0)])
        table = pq.read_table(path)
        index = table.schema.get_field_index(name)
        rewrite(path, table.set_column(index, name, pa.array([[]], table.schema.field(name).type)))
        with pytest.raises(TokenShardError, match="document '000000000': roles and times_s are null"):
            check_token_shard(path)

    def test_an_unknown_role(self, tmp_path: Path) -> None:
        path = write_shard(tmp_path / "a.parquet", [Document("k", (TextSegment("a", Role.USER),))])
        table = pq.read_table(path)
        rewrite(path, table.set_column(4, "roles", pa.array([[3]], table.schema.field("roles").type)))
        with pytest.raises(TokenShardError, match=r"document 'k': unknown role in \[3\]"):
            check_token_shard(path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kind": "nonsense"}, "kind 'nonsense' is none of pairs, videos"),
            ({"kind": None}, "'kind' is None, not str"),
            ({"source": 5}, "'source' is 5, not str"),
            ({"source_bytes": "5"}, "'source_bytes' is '5', not int or null"),
            ({"source_hash": 5}, "'source_hash' is 5, not str"),
            ({"source_complete": "no"}, "'source_complete' is 'no', not bool"),
            ({"counts": []}, "'counts' is"),
            ({"counts": {"samples_read": True}}, "'samples_read' is True, not int"),
            ({"counts": {"samples_read": -1}}, "whole numbers"),
            ({"counts": {"notes": {"tar_empty": "1"}}}, "whole numbers"),
            ({"quarantine": []}, "'quarantine' is"),
            ({"quarantine": {"num_records": "1", "sha256": ""}}, "'num_records' is '1', not int"),
            ({"fingerprint_components": "abc"}, "'fingerprint_components' is"),
            ({"surprise": 1}, "surprise"),
        ],
    )
    def test_a_footer_that_is_something_else(self, changes: dict[str, Any], message: str) -> None:
        text = json.dumps(json.loads(footer_for([]).to_json()) | changes)
        with pytest.raises(ValueError, match=message):
            TokenShardFooter.from_json(text)

    @pytest.mark.parametrize("text", ["[1]", "null", "3", '"a"'])
    def test_a_footer_that_is_no_object(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(SCHEMA.empty_table().replace_schema_metadata({FOOTER_KEY: text}), path)
        with pytest.raises(TokenShardError, match=r"a\.parquet: footer is a JSON \w+, not an object"):
            check_token_shard(path)

    @pytest.mark.parametrize(
        "codes", [np.zeros(31, np.uint16), np.zeros(32, np.int64), np.full(32, 8192, np.uint16)]
    )
    def test_codes_outside_the_contract(self, codes: np.ndarray) -> None:
        with pytest.raises(ValueError, match="code"):
            ImageSegment(codes)

    def test_a_document_with_roles_on_some_segments_only(self, tmp_path: Path) -> None:
        document = Document("k", (TextSegment("a", Role.USER), TextSegment("b")))
        with pytest.raises(ValueError, match="document 'k': some segments have a role"):
            write_shard(tmp_path / "a.parquet", [document])
