"""LLaVA's conversations: order, counts, pictures from their folder only; and the JSON array they come in."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shard_task import ShardTask
from pipeline.sources import json_array
from pipeline.sources.chat_source import ChatSource
from pipeline.sources.chats import read_chats
from pipeline.sources.json_array import begins_array, read_json_array
from pipeline.sources.records import RawDocument, RawImage
from pipeline.sources.tar_reader import TarSample
from schemas.quarantine import QuarantineRecord, Reason, Unit

TURNS, SCHEMA = "conversations", Reason.DOC_SCHEMA_ERROR
ANSWER = {"from": "gpt", "value": "A bus."}


def _human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def _items(value: Any, **members: bytes) -> list[RawDocument | QuarantineRecord]:
    named = {"json": json.dumps(value).encode()} | {
        name.replace("_", "."): data for name, data in members.items()
    }
    return list(read_chats([TarSample("k", named, 0)], "shard"))


def _spoken(document: RawDocument) -> list[tuple[str, str | bytes]]:
    return [
        (segment.role.value, segment.data if isinstance(segment, RawImage) else segment.text)
        for segment in document.segments
    ]


def test_a_picture_stands_where_its_placeholder_does() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        _human("<image>\nWhat?"),
        ANSWER,
        _human("Sure? "),
        ANSWER,
    ]
    (document,) = _items({"id": "7", "image": "coco/7.jpg", "conversations": turns}, jpg=b"bus")
    assert _spoken(document) == [
        ("system", "Be brief."),
        ("user", b"bus"),
        ("user", "What?"),
        ("assistant", "A bus."),
        ("user", "Sure? "),
        ("assistant", "A bus."),
    ]


def test_several_pictures_in_order() -> None:
    turns = [_human("Compare <image> and\n<image>"), ANSWER, _human("And\n<image>\nthis?"), ANSWER]
    members = {"10_jpg": b"ten", "2_jpg": b"two", "0_jpg": b"zero"}
    for names in (["0.jpg", "2.jpg", "10.jpg"], None):  # named, or the members by number
        (document,) = _items({"image": names, "conversations": turns}, **members)
        assert [content for _, content in _spoken(document)] == [
            "Compare", b"zero", "and", b"two", "A bus.", "And", b"ten", "this?", "A bus.",
        ]  # fmt: skip


def test_a_conversation_without_pictures() -> None:
    (document,) = _items({"conversations": [_human("hi"), ANSWER]})
    assert len(_spoken(document)) == 2


def test_a_member_that_is_not_shown_is_noted() -> None:
    value = {"conversations": [_human("<image> a?"), ANSWER], "image": "0.jpg"}
    note, document = _items(value, **{"0_jpg": b"0", "1_jpg": b"1"})
    assert (note.unit, note.reason, note.key) == (Unit.MEMBER, Reason.MEMBER_IGNORED, "k.1.jpg")
    assert isinstance(document, RawDocument)


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        ({TURNS: "x"}, SCHEMA, "must be a list"),
        ({TURNS: ["x", ANSWER]}, SCHEMA, "turn 0"),
        ({TURNS: [{"from": "tool", "value": "x"}]}, SCHEMA, "from 'tool', not human"),
        ({TURNS: [{"from": [], "value": "x"}]}, SCHEMA, "turn 0"),
        ({TURNS: [_human("a?"), {"from": "gpt"}]}, SCHEMA, "turn 1: its value"),
        ({TURNS: [_human("a?")]}, SCHEMA, "nothing said by the assistant"),
        ({TURNS: []}, Reason.DOC_EMPTY, ""),
        # the picture was lost on the way: its question must not become one about nothing
        ({TURNS: [_human("<image>\na?"), ANSWER]}, SCHEMA, "0 images, but 1 times"),
        ({TURNS: [_human("a?"), ANSWER], "image": "x.jpg"}, SCHEMA, "1 images, but 0"),
        ({TURNS: [_human("<image><image>"), ANSWER], "image": "x.jpg"}, SCHEMA, "1 im"),
        ({TURNS: [_human("<image>"), ANSWER], "image": {"a": 1}}, SCHEMA, "no string"),
        ({TURNS: [_human("<image>"), ANSWER], "image": "x.jpg"}, Reason.DOC_IMAGE_MISSING, "x.jpg"),
        ({TURNS: [_human("<video>"), ANSWER], "video": "x.mp4"}, SCHEMA, "a video"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_is_refused(value: Any, reason: Reason, detail: str) -> None:
    (item,) = _items(value)
    assert (item.unit, item.reason) == (Unit.SAMPLE, reason)
    assert detail in item.detail


def _llava(image: str) -> dict[str, Any]:
    return {"id": image, "image": image, "conversations": [_human("<image>\nWhat?"), ANSWER]}


@pytest.mark.parametrize("name", ["mix.json", "mix.json.gz", "mix.jsonl"])
def test_pictures_come_from_their_folder_only(tmp_path: Path, name: str) -> None:
    root = tmp_path / "images"
    (root / "coco/train2017").mkdir(parents=True)
    (root / "coco/train2017/1.jpg").write_bytes(b"inside")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "images-too").mkdir()
    (tmp_path / "images-too/2.jpg").write_bytes(b"secret")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder-link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "inner.jpg").symlink_to(root / "coco/train2017/1.jpg")  # stays inside
    outside = [
        "../secret.jpg", "coco/../../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "loop",
        "folder-link/secret.jpg", "../images-too/2.jpg", "/etc/passwd", "~/x.jpg", "coco", "gone.jpg", "..",
        "/", "file:///etc/passwd", "http://127.0.0.1/x.jpg", "a\0b", "\ud800.jpg", "C:\\x.jpg", "x" * 5000,
    ]  # fmt: skip
    inside = [
        "coco/train2017/1.jpg",
        "inner.jpg",
        "./coco//train2017/1.jpg",
        "data:image/png;base64,aW5zaWRl",
    ]
    values = [_llava(image) for image in [*outside, *inside]]
    lines = name.endswith(".jsonl")
    text = "\n".join(map(json.dumps, values)) if lines else json.dumps(values, indent=1)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    items = list(ChatSource(images=root)(ShardTask("t", str(tmp_path / name))))
    assert [item.key for item in items] == [f"{number:09d}" for number in range(len(values))]
    for item in items[: len(outside)]:
        assert isinstance(item, QuarantineRecord), item.key
        assert (item.unit, item.reason) == (Unit.SAMPLE, Reason.DOC_IMAGE_MISSING)
    for item in items[len(outside) :]:
        assert item.images[0].data == b"inside"


_JSON = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('ab\\"[]{},:\n\xe9'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _samples(data: bytes, max_bytes: int = 10**6) -> list[TarSample | QuarantineRecord]:
    return list(read_json_array(io.BytesIO(data), "s", max_bytes))


@given(st.lists(_JSON, max_size=5), st.integers(1, 9), st.sampled_from([None, 1]), st.booleans(), st.data())
def test_elements_of_an_array_whatever_its_layout(
    values: list[Any], chunk_bytes: int, indent: int | None, is_ascii: bool, data: st.DataObject
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=is_ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "CHUNK_BYTES", chunk_bytes)
        samples = _samples(b"\xef\xbb\xbf" + text + b" \n")
        cut = _samples(text[: data.draw(st.integers(1, len(text) - 1))])
    assert [json.loads(sample.members["json"]) for sample in samples] == values
    *before, shard = cut
    assert (shard.unit, shard.reason) == (Unit.SHARD, Reason.TAR_TRUNCATED)
    sound = [json.loads(sample.members["json"]) for sample in before if isinstance(sample, TarSample)]
    assert sound == values[: len(sound)]
    assert len(before) - len(sound) in (0, 1)  # the one that was cut


def test_an_element_without_end_is_passed_over_and_never_held() -> None:
    first, second = _samples(b'[{"a": "' + b"x" * 5_000_000 + b'"}, {"b": 1}]', max_bytes=1000)
    assert (first.key, first.reason, first.num_bytes) == ("000000000", Reason.METADATA_TOO_LARGE, 1001)
    assert (second.key, second.members["json"]) == ("000000001", b'{"b": 1}')


def test_what_follows_the_array_is_reported() -> None:
    sample, shard = _samples(b'[{"a": 1}]\n[{"b": 2}]')
    assert isinstance(sample, TarSample)
    assert (shard.unit, shard.reason) == (Unit.SHARD, Reason.TAR_CORRUPT)
    assert [item.key for item in _samples(b'[{"a": 1},]\n  ')] == ["000000000"]  # a comma too many is none


def test_arrays_are_told_from_lines_by_content() -> None:
    for head in (b'[{"a"', b"[", b"[\n  {", b"[ ]", b"[\n"):
        assert begins_array(head)
    for head in (b"", b'{"a": [', b"[1, 2]", b'["a"]', b"x"):
        assert not begins_array(head)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\r\n "])
def test_a_mark_or_white_space_before_an_array(tmp_path: Path, before: bytes) -> None:
    value = {TURNS: [_human("hi"), ANSWER]}
    (tmp_path / "mix.json").write_bytes(before + json.dumps([value]).encode())
    (document,) = ChatSource()(ShardTask("t", str(tmp_path / "mix.json")))
    assert document.key == "000000000"


def _read_file(path: Path, text: str | bytes) -> list[RawDocument | QuarantineRecord]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(ChatSource()(ShardTask("t", str(path))))


def test_an_object_over_several_lines_is_one_chat(tmp_path: Path) -> None:
    text = json.dumps({TURNS: [_human("hi"), ANSWER]}, indent=1)
    (document,) = _read_file(tmp_path / "one.json", text)
    assert _spoken(document) == [("user", "hi"), ("assistant", "A bus.")]
    (record,) = _read_file(tmp_path / "two.json", text + text)
    assert (record.unit, record.reason) == (Unit.SAMPLE, Reason.METADATA_INVALID_JSON)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_a_list_in_an_object_is_read_as_the_list(tmp_path: Path, indent: int | None, suffix: str) -> None:
    chats = [{TURNS: [_human(f"{number} ]}}"), ANSWER]} for number in range(3)]
    pack = gzip.compress if suffix.endswith(".gz") else bytes
    for wrapper in ({"data": chats}, {"version": '1 ["{', "size": 3, "is_new": True, "samples": chats}):
        text = json.dumps(wrapper, indent=indent).encode() + b"\n"
        documents = _read_file(tmp_path / f"all{suffix}", pack(b"\xef\xbb\xbf" + text))
        assert [document.key for document in documents] == ["000000000", "000000001", "000000002"]
        assert [_spoken(document)[0][1] for document in documents] == ["0 ]}", "1 ]}", "2 ]}"]


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("", Reason.TAR_TRUNCATED),
        (
            ', "test": [{"question": "q", "answer": "a"}]}',
            Reason.TAR_CORRUPT,
        ),  # not lost silently
        ("}}", Reason.TAR_CORRUPT),
        ("x", Reason.TAR_CORRUPT),
    ],
)
def test_what_follows_a_wrapped_list_is_reported(tmp_path: Path, ending: str, reason: Reason) -> None:
    begin = json.dumps({"train": [{TURNS: [_human("hi"), ANSWER]}]})[:-1]
    for text in (begin + ending, begin + " " * json_array.CHUNK_BYTES + ending):
        document, record = _read_file(tmp_path / "all.json", text)
        assert isinstance(document, RawDocument)
        assert (record.unit, record.reason) == (Unit.SHARD, reason)


def test_json_lines_with_lists_stay_lines(tmp_path: Path) -> None:
    """Tools of a function call, say: only lists of a few names wrap a data set."""
    line = {"tools": [{"name": "x"}], TURNS: [_human("hi"), ANSWER], "data": [{"a": 1}]}
    documents = _read_file(tmp_path / "a.jsonl", 2 * (json.dumps(line) + "\n"))
    assert [_spoken(document)[0][1] for document in documents] == ["hi", "hi"]


@pytest.mark.parametrize("copies", [1, 2])
def test_lines_that_are_chats_wrap_nothing(tmp_path: Path, copies: int) -> None:
    """Whatever stands behind the list: it would be lost."""
    line = {"id": 7, "annotations": [{"box": [1, 2]}], TURNS: [_human("hi"), ANSWER]}
    documents = _read_file(tmp_path / "a.jsonl", copies * (json.dumps(line) + "\n"))
    assert [_spoken(document)[0][1] for document in documents] == ["hi"] * copies


def test_a_gzip_that_is_none_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mix.json.gz").write_bytes(b"\x1f\x8b\x08" + b"damage" * 9)
    (record,) = ChatSource()(ShardTask("t", str(tmp_path / "mix.json.gz")))
    assert record.unit is Unit.SHARD
