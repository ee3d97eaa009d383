"""The rules of image-text pairs, one by one; docs/inputs.md lists them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inputs import expand_inputs
from pipeline.read_shard import read_shard
from pipeline.sources.captions import decode_caption
from pipeline.sources.metadata import dump_fields, parse_metadata
from pipeline.sources.pairs import PairsConfig, read_pairs
from pipeline.sources.records import RawDocument, RawImage
from pipeline.sources.tar_reader import TarSample
from pipeline.sources.videos import VideosConfig
from schemas.document import TextSegment
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit


def read_one(members: dict[str, bytes], **settings: Any) -> list[RawDocument | QuarantineRecord]:
    return list(read_pairs([TarSample("k", members, 0)], "shard", PairsConfig(**settings)))


def caption_of(members: dict[str, bytes], **settings: Any) -> str:
    (document,) = read_one({"jpg": b"I"} | members, **settings)
    assert isinstance(document, RawDocument), document
    image, text = document.segments
    assert image == RawImage(b"I", "jpg")
    assert isinstance(text, TextSegment)
    return text.text


def refusal_of(members: dict[str, bytes], **settings: Any) -> Reason:
    (record,) = [item for item in read_one(members, **settings) if item.unit is Unit.SAMPLE]
    assert record.key == "k"
    assert record.detail
    assert record.num_bytes == sum(map(len, members.values()))
    return record.reason


def result_of(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or the refusal it raises."""
    try:
        return function(*arguments)
    except RefusedError as refusal:
        return refusal


def test_image_then_caption_with_metadata() -> None:
    members = {"png": b"I", "json": b'{"width": 3, "url": "u", "exif": "{}"}', "txt": b"a cat"}
    assert read_one(members) == [
        RawDocument("k", (RawImage(b"I", "png"), TextSegment("a cat")), '{"url":"u","width":3}', 44)
    ]


def test_txt_wins_over_json() -> None:
    assert caption_of({"txt": b"from txt", "json": b'{"caption": "from json"}'}) == "from txt"
    assert refusal_of({"jpg": b"I", "txt": b"", "json": b'{"caption": "c"}'}) is Reason.CAPTION_EMPTY


def test_caption_from_json_by_field() -> None:
    assert caption_of({"json": b'{"caption": "c"}'}) == "c"
    assert caption_of({"json": b'{"TEXT": "c"}'}, caption_field="TEXT") == "c"
    assert refusal_of({"jpg": b"I", "json": b'{"caption": "c"}'}, caption_field="") is Reason.CAPTION_MISSING


@pytest.mark.parametrize("value", ["null", "3", '["a"]', '{"b": 1}'])
def test_json_caption_must_be_text(value: str) -> None:
    members = {"jpg": b"I", "json": b'{"caption": %s}' % value.encode()}
    assert refusal_of(members) is Reason.CAPTION_MISSING


def test_json_caption_follows_the_same_rules() -> None:
    assert refusal_of({"jpg": b"I", "json": rb'{"caption": "a \ud800 b"}'}) is Reason.CAPTION_BAD_ENCODING
    assert refusal_of({"jpg": b"I", "json": rb'{"caption": "a \u0000 b"}'}) is Reason.CAPTION_BAD_ENCODING
    assert refusal_of({"jpg": b"I", "json": b'{"caption": "  "}'}) is Reason.CAPTION_EMPTY
    assert caption_of({"json": rb'{"caption": "\ud83d\ude00"}'}) == "\N{GRINNING FACE}"


def test_invalid_json_costs_the_metadata_not_the_sample() -> None:
    record, document = read_one({"jpg": b"I", "txt": b"c", "json": b"{"})
    assert (record.key, record.unit, record.reason) == ("k.json", Unit.MEMBER, Reason.METADATA_INVALID_JSON)
    assert document == RawDocument("k", (RawImage(b"I", "jpg"), TextSegment("c")), None, 3)


def test_image_missing() -> None:
    assert refusal_of({"txt": b"c"}) is Reason.IMAGE_MISSING
    failed = b'{"status": "failed_to_download", "error_message": "404", "caption": "c"}'
    (record,) = read_one({"json": failed, "txt": b"c"})
    assert record.reason is Reason.IMAGE_MISSING
    assert record.detail == "img2dataset status failed_to_download: 404"
    (record,) = read_one({"v1.jpg": b"I", "v1.txt": b"c"})
    assert record.detail == "members: .v1.jpg, .v1.txt (all behind the first dot of a name is its extension)"


def test_two_images_under_one_key() -> None:
    assert refusal_of({"jpg": b"1", "png": b"2", "txt": b"c"}) is Reason.DUPLICATE_MEMBER


@pytest.mark.parametrize("refused", ["jpg", "txt"])
def test_a_refused_member_is_not_replaced_by_another(refused: str) -> None:
    members = {"jpg": b"I", "txt": b"c", "json": b'{"caption": "c"}'}
    del members[refused]
    sample = TarSample("k", members, 0, {refused: Reason.MEMBER_TOO_LARGE})
    (record,) = read_pairs([sample], "shard")
    assert record.reason is (Reason.IMAGE_MISSING if refused == "jpg" else Reason.CAPTION_MISSING)
    assert "member_too_large" in record.detail


def test_records_pass_through_in_order() -> None:
    note = QuarantineRecord("shard", "x", Unit.MEMBER, Reason.MEMBER_IGNORED)
    sample = TarSample("k", {"jpg": b"I", "txt": b"c"}, 0)
    items = list(read_pairs([note, sample, note], "shard"))
    assert items[0] is note
    assert isinstance(items[1], RawDocument)
    assert items[2] is note


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
def test_any_text_is_kept_as_stored(text: str) -> None:
    data = text.encode()
    if text.removeprefix("\ufeff").strip():
        assert decode_caption(data, 1000, "quarantine") == text.removeprefix("\ufeff").strip()
    else:
        with pytest.raises(RefusedError) as refusal:
            decode_caption(data, 1000, "quarantine")
        assert refusal.value.reason is Reason.CAPTION_EMPTY


@given(st.binary(max_size=80), st.sampled_from(["quarantine", "replace"]))
def test_any_bytes_give_clean_text_or_a_refusal(data: bytes, on_bad_encoding: str) -> None:
    result = result_of(decode_caption, data, 60, on_bad_encoding)
    if isinstance(result, str):
        assert result == result.strip() != ""
        assert "\0" not in result
        result.encode()  # no lone surrogate
    else:
        expected = {Reason.CAPTION_EMPTY, Reason.CAPTION_TOO_LONG}
        expected |= {Reason.CAPTION_BAD_ENCODING} if on_bad_encoding == "quarantine" else set()
        assert result.reason in expected


def test_replacement_is_visible() -> None:
    assert decode_caption(b"caf\xe9 \0 x", 60, "replace") == "caf\ufffd \ufffd x"


def test_a_byte_order_mark_is_taken_away() -> None:
    assert caption_of({"txt": b"\xef\xbb\xbfa cat"}) == "a cat"
    assert caption_of({"txt": b"a \xef\xbb\xbfcat"}) == "a \ufeffcat"


def test_long_captions() -> None:
    assert decode_caption(b"a" * 60, 60, "quarantine") == "a" * 60
    with pytest.raises(RefusedError) as refusal:
        decode_caption(b"a" * 61, 60, "quarantine")
    assert refusal.value.reason is Reason.CAPTION_TOO_LONG
    assert "--pairs.max-caption-bytes" in refusal.value.detail


def test_a_refusal_names_the_flag_that_helps() -> None:
    for config in (PairsConfig(), VideosConfig()):
        with pytest.raises(RefusedError) as refusal:
            decode_caption(b"caf\xe9", 60, config.on_bad_encoding, config.section)
        assert f"--{config.section}.on-bad-encoding replace" in refusal.value.detail
    with pytest.raises(ValueError, match=r"--videos\.max-caption-bytes must be positive"):
        VideosConfig(max_caption_bytes=0)


def test_metadata_keeps_numbers_outside_json_out() -> None:
    value = parse_metadata(b'\xef\xbb\xbf{"width": NaN, "height": 1e999, "url": "u"}', 1000)
    assert dump_fields(value, ("width", "height", "url")) == '{"url":"u"}'
    assert dump_fields(parse_metadata(b'{"url": [NaN]}', 1000), ("url",)) == '{"url":[null]}'
    with pytest.raises(RefusedError):
        dump_fields(parse_metadata(b'{"url": [1e999]}', 1000), ("url",))


def test_deep_metadata_is_refused() -> None:
    with pytest.raises(RefusedError, match="deep"):
        parse_metadata(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, 10**6)


def test_metadata_with_lone_surrogates_stays_escaped() -> None:
    dumped = dump_fields(parse_metadata(rb'{"url": "\ud800", "license": "\u00e9"}', 1000), ("url", "license"))
    assert dumped is not None
    assert dumped.encode("ascii")
    assert json.loads(dumped) == {"license": "é", "url": "\ud800"}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=5), st.randoms())
def test_metadata_is_deterministic_and_complete(value: dict[str, Any], rng: Any) -> None:
    shuffled = list(value.items())
    rng.shuffle(shuffled)
    dumped = dump_fields(dict(shuffled), ("*",))
    kept = {name: item for name, item in value.items() if item is not None}
    assert dumped == dump_fields(value, ("*",))
    assert (json.loads(dumped) if dumped else {}) == kept


@given(st.binary(max_size=200))
def test_any_bytes_are_metadata_or_refused(data: bytes) -> None:
    result = result_of(parse_metadata, data, 100)
    if isinstance(result, RefusedError):
        assert result.reason in (Reason.METADATA_INVALID_JSON, Reason.METADATA_TOO_LARGE)
    else:
        assert isinstance(result, dict)


@pytest.mark.parametrize(
    "setting", [{"max_caption_bytes": 0}, {"max_metadata_bytes": -1}, {"on_bad_encoding": "drop"}]
)
def test_settings_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting)).replace("_", "-")):
        PairsConfig(**setting)


@pytest.mark.shared
def test_real_pairs_all_come_out() -> None:
    pairs = Path(__file__).parents[4] / "shared" / "data" / "pairs"
    if not pairs.is_dir():
        pytest.skip("the shared pairs are not beside this checkout")
    items = [
        item for shard in expand_inputs([str(pairs)]) for item in read_pairs(read_shard(shard), shard.name)
    ]
    assert len(items) == 168
    assert all(isinstance(item, RawDocument) and item.metadata for item in items)
