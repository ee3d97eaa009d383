"""Vocabulary, fingerprint, quarantine records, counts and atomic files keep their promises."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.atomic_write import atomic_path, create_exclusively, write_atomically
from schemas.fingerprint import Fingerprint
from schemas.quarantine import QuarantineRecord, Reason, Unit, parse_records
from schemas.token_shard import ShardCounts
from schemas.vocabulary import IMAGE_SPAN_LENGTH, VocabularyLayout


def test_the_layout_of_the_paper() -> None:
    layout = VocabularyLayout(32_000)
    assert (layout.image_code_offset, layout.img_start_id, layout.img_end_id) == (32_000, 40_192, 40_193)
    assert (layout.size, layout.padded_size) == (40_194, 40_320)
    assert layout.id_dtype is np.uint16


@given(st.integers(1, 200_000))
def test_ids_never_overlap_and_fit_their_type(base_size: int) -> None:
    layout = VocabularyLayout(base_size)
    assert layout.padded_size % 128 == 0
    assert 0 <= layout.padded_size - layout.size < 128
    assert np.iinfo(layout.id_dtype).max >= layout.img_end_id
    span = layout.image_span(np.array([0, 8191] * 16, np.uint16))
    assert len(span) == IMAGE_SPAN_LENGTH
    assert span[[0, -1]].tolist() == [layout.size - 2, layout.size - 1]
    assert span[1:3].tolist() == [base_size, base_size + 8191]
    assert layout.is_image_id(span).all()
    assert layout.is_code_id(span).tolist() == [False, *[True] * 32, False]
    assert not layout.is_image_id(np.arange(min(base_size, 100))).any()


@pytest.mark.parametrize("code", [8192, 65_535, -1])
def test_a_code_that_no_codebook_holds_becomes_no_marker(code: int) -> None:
    codes = np.zeros(32, np.int32)
    codes[31] = code
    with pytest.raises(ValueError, match=r"codes are 0\.\.8191"):
        VocabularyLayout().image_span(codes)


def test_a_fingerprint_depends_on_values_not_on_their_order() -> None:
    one = Fingerprint({"weights": "a", "preprocess": {"filter": "bicubic", "color": "clean"}})
    same = Fingerprint({"preprocess": {"color": "clean", "filter": "bicubic"}, "weights": "a"})
    other = Fingerprint({"weights": "a", "preprocess": {"filter": "bilinear", "color": "clean"}})
    assert one.hex == same.hex != other.hex
    assert one.codebook_hex == other.codebook_hex
    assert one.differences(other) == ["preprocess.filter: bicubic here, bilinear there"]
    assert Fingerprint.from_json(one.to_json()) == one


@given(key=st.text(), detail=st.text(), num_bytes=st.integers(0, 1 << 60))
def test_the_ledger_survives_any_text(key: str, detail: str, num_bytes: int) -> None:
    records = [QuarantineRecord("a.tar", key, Unit.SAMPLE, Reason.IMAGE_EMPTY, detail, num_bytes)] * 2
    data = "\n".join(record.to_json() for record in records).encode("ascii")
    assert data.count(b"\n") == 1
    assert list(parse_records(data)) == records


def test_a_ledger_line_with_an_unknown_reason_is_refused() -> None:
    data = QuarantineRecord("a", "k", Unit.SAMPLE, Reason.IMAGE_EMPTY).to_json().encode()
    with pytest.raises(ValueError, match=r"line 1: .*bad_luck"):
        list(parse_records(data.replace(b"image_empty", b"bad_luck")))


counts = st.dictionaries(st.sampled_from(["image_empty", "caption_empty"]), st.integers(0, 99))


@given(reasons=st.lists(counts, min_size=1, max_size=4), written=st.integers(0, 99))
def test_sums_of_balanced_counts_balance(reasons: list[dict[str, int]], written: int) -> None:
    parts = [
        ShardCounts(samples_read=written + sum(r.values()), documents_written=written, samples_quarantined=r)
        for r in reasons
    ]
    total = sum(parts, ShardCounts())
    assert total.imbalance() is None
    assert total.num_quarantined == sum(sum(r.values()) for r in reasons)


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "a.json"
    write_atomically(target, b"old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["a.json"]


def _create(path: Path, content: bytes, barrier: object, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    results.put((create_exclusively(path, content), path.read_bytes()))  # type: ignore[attr-defined]


def test_of_several_creators_one_wins_and_all_see_its_content(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results, path = context.Barrier(4), context.Queue(), tmp_path / "run.json"
    creators = [
        context.Process(target=_create, args=(path, bytes([index]) * 4096, barrier, results))
        for index in range(4)
    ]
    for creator in creators:
        creator.start()
    outcomes = [results.get(timeout=20) for _ in creators]
    for creator in creators:
        creator.join()
    assert sorted(won for won, _ in outcomes) == [False, False, False, True]
    assert {content for _, content in outcomes} == {path.read_bytes()}
