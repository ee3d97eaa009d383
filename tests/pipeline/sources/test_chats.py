"""Chats, questions and edits: every form, what is refused, and images that are never read from elsewhere."""

import base64
import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shard_task import ShardTask
from pipeline.sources.chat_pictures import ChatPictures
from pipeline.sources.chat_source import ChatSource
from pipeline.sources.chats import ChatsConfig, read_chats
from pipeline.sources.json_lines import MAX_IMAGE_BYTES, FolderImages, read_json_lines
from pipeline.sources.records import RawDocument, RawImage
from pipeline.sources.tar_reader import TarSample
from schemas.document import Role, TextSegment
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
USER, ASSISTANT = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}


def _read(value: Any, config: ChatsConfig | None = None, **images: bytes) -> RawDocument | QuarantineRecord:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    members = {"json": data} | {name.replace("_", "."): content for name, content in images.items()}
    (item,) = read_chats([TarSample("k", members, 0)], "shard", config)
    return item


def _spoken(document: RawDocument) -> list[tuple[str, str | bytes]]:
    return [
        (segment.role.value, segment.data if isinstance(segment, RawImage) else segment.text)
        for segment in document.segments
    ]


def test_messages_with_named_images() -> None:
    value = {
        "messages": [
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "image", "image": "0.JPG"}, {"type": "text", "text": "what?"}],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "a dog"}, {"type": "image", "path": "1.png"}],
            },
        ],
        "source": "s",
    }
    document = _read(value, **{"0_jpg": b"zero", "1_png": b"one"})
    assert _spoken(document) == [
        ("system", "be brief"),
        ("user", b"zero"),
        ("user", "what?"),
        ("assistant", "a dog"),
        ("assistant", b"one"),
    ]
    assert document.metadata == '{"source":"s"}'


def test_unnamed_image_parts_take_the_images_in_order() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    value = {"messages": [{"role": "user", "content": parts}, ASSISTANT], "images": ["b.png", "a.png"]}
    document = _read(value, a_png=b"a", b_png=b"b")
    assert [content for _, content in _spoken(document)] == [b"b", "and", b"a", "b."]


def test_questions() -> None:
    document = _read({"image": "jpg", "question": "q <image>", "answer": "a"}, jpg=b"x")
    assert _spoken(document) == [("user", b"x"), ("user", "q <image>"), ("assistant", "a")]
    several = _read(
        {"images": ["1.png", "0.png"], "question": "q", "answer": "a"}, **{"0_png": b"0", "1_png": b"1"}
    )
    assert [content for _, content in _spoken(several)] == [b"1", b"0", "q", "a"]
    assert len(_spoken(_read({"question": "q", "answer": "a"}))) == 2  # a question without a picture


@pytest.mark.parametrize(
    ("source", "instruction", "target"),
    [
        ("source_image", "instruction", "target_image"),
        ("original_image", "edit_prompt", "edited_image"),
        ("source_img", "instruction", "target_img"),
    ],
)
def test_edits(source: str, instruction: str, target: str) -> None:
    document = _read({source: "s.png", instruction: "do it", target: "t.png"}, s_png=b"s", t_png=b"t")
    assert _spoken(document) == [("user", b"s"), ("user", "do it"), ("assistant", b"t")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, Reason.DOC_SCHEMA_ERROR),
        ({"messages": []}, Reason.DOC_EMPTY),
        ({"messages": [USER]}, Reason.DOC_SCHEMA_ERROR),  # nobody answers
        ({"messages": [ASSISTANT]}, Reason.DOC_SCHEMA_ERROR),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, Reason.DOC_SCHEMA_ERROR),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, Reason.DOC_SCHEMA_ERROR),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "audio"}]}]},
            Reason.DOC_SCHEMA_ERROR,
        ),
        ({"messages": [USER, "x"]}, Reason.DOC_SCHEMA_ERROR),
        ({"messages": "x"}, Reason.DOC_SCHEMA_ERROR),
        ({"messages": [USER, ASSISTANT], "images": ["jpg"]}, Reason.DOC_SCHEMA_ERROR),  # shown nowhere
        ({"image": "gone.jpg", "question": "q", "answer": "a"}, Reason.DOC_IMAGE_MISSING),
        ({"image": "json", "question": "q", "answer": "a"}, Reason.DOC_IMAGE_MISSING),
        ({"image": "../../etc/passwd", "question": "q", "answer": "a"}, Reason.DOC_IMAGE_MISSING),
        ({"image": "http://127.0.0.1/", "question": "q", "answer": "a"}, Reason.DOC_IMAGE_MISSING),
        ({"image": 7, "question": "q", "answer": "a"}, Reason.DOC_SCHEMA_ERROR),
        ({"image": "jpg", "question": "q"}, Reason.DOC_SCHEMA_ERROR),
        ({"source_image": "jpg", "target_image": "jpg"}, Reason.DOC_SCHEMA_ERROR),  # no instruction
        ({"messages": [USER, {"role": "assistant", "content": "\ud800"}]}, Reason.CAPTION_BAD_ENCODING),
        ({"messages": [USER, {"role": "assistant", "content": "a\0b"}]}, Reason.CAPTION_BAD_ENCODING),
        (b"{", Reason.METADATA_INVALID_JSON),
        (b"[]", Reason.METADATA_INVALID_JSON),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(value: Any, reason: Reason) -> None:
    item = _read(value, jpg=b"x")
    assert isinstance(item, QuarantineRecord)
    assert (item.unit, item.reason) == (Unit.SAMPLE, reason)


def test_bad_text_can_be_replaced() -> None:
    value = {"messages": [USER, {"role": "assistant", "content": "a\0\ud800"}]}
    document = _read(value, ChatsConfig(on_bad_encoding="replace"))
    assert document.segments[-1].text.isprintable()


_FIELDS = ["messages", "role", "content", "type", "text", "image", "images", "image_url", "url"]
_WORDS = ["user", "assistant", "image", "image_url", "text"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=4) | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner),
)


@given(_JSON)
def test_any_json_gives_one_document_or_one_record(value: Any) -> None:
    item = _read({"messages": value} if not isinstance(value, dict) else value)
    if isinstance(item, RawDocument):
        assert {segment.role for segment in item.segments} >= {Role.USER, Role.ASSISTANT}


def _lines(*values: Any) -> bytes:
    return b"".join(
        value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n" for value in values
    )


def test_json_lines_are_keyed_by_line(tmp_path: Path) -> None:
    question = {"question": "q", "answer": "a"}
    data = _lines(question, b"\n", b"broken\n", question)
    for name, content in {"a.jsonl": data, "b.jsonl.gz": gzip.compress(data)}.items():
        (tmp_path / name).write_bytes(content)
        items = list(ChatSource()(ShardTask("t", str(tmp_path / name))))
        assert [item.key for item in items] == ["000000000", "000000002", "000000003"]
        assert [type(item) for item in items] == [RawDocument, QuarantineRecord, RawDocument]


def test_a_cut_gzip_is_reported_and_what_came_before_kept(tmp_path: Path) -> None:
    noise = random.Random(0)
    lines = [{"question": "q", "answer": noise.randbytes(1000).hex()} for _ in range(900)]
    data = gzip.compress(_lines(*lines))
    (tmp_path / "cut.jsonl.gz").write_bytes(data[: len(data) // 2])
    items = list(ChatSource()(ShardTask("t", str(tmp_path / "cut.jsonl.gz"))))
    assert isinstance(items[0], RawDocument)
    assert (items[-1].unit, items[-1].reason) == (Unit.SHARD, Reason.TAR_TRUNCATED)


def test_a_line_without_end_is_passed_over() -> None:
    stream = io.BytesIO(_lines(b'{"question": "' + b"x" * 5000 + b'"}\n', {"question": "q", "answer": "a"}))
    first, second = read_json_lines(stream, "s", max_line_bytes=1000)
    assert (first.key, first.reason) == ("000000000", Reason.METADATA_TOO_LARGE)
    assert (second.key, second.members["json"][:12]) == ("000000001", b'{"question":')


def test_images_of_lines_come_from_their_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a.jpg").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    find = FolderImages(folder)
    assert find("deep/a.jpg").data == b"inside"
    for name in (
        "../secret",
        "/etc/passwd",
        str(tmp_path / "secret"),
        "link",
        "deep",
        "gone.jpg",
        "",
        "a\0b",
        "x" * 5000,
    ):
        with pytest.raises(RefusedError) as caught:
            find(name)
        assert caught.value.reason is Reason.DOC_IMAGE_MISSING
    with pytest.raises(RefusedError, match="no folder"):
        FolderImages(None)("deep/a.jpg")
    with (folder / "large.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(RefusedError, match=r"large\.jpg' exceeds") as caught:
        find("large.jpg")
    assert caught.value.reason is Reason.IMAGE_TOO_LARGE


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Two real pictures."""
    with tarfile.open(SAMPLES / "pairs" / "00000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")][:2]
        return [tar.extractfile(name).read() for name in names]


def _asks_about(*urls: object) -> dict[str, Any]:
    """A chat in OpenAI's form."""
    parts = [{"type": "image_url", "image_url": url} for url in urls]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}, ASSISTANT]}


def _uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def test_image_url_parts_hold_pictures_or_name_them(pictures: list[bytes], tmp_path: Path) -> None:
    said = [("user", pictures[0]), ("user", pictures[1]), ("user", "?"), ("assistant", "b.")]
    member = _read(
        _asks_about({"url": _uri(pictures[0]), "detail": "low"}, {"url": "1.jpg"}), **{"1_jpg": pictures[1]}
    )
    assert _spoken(member) == said
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b.jpg").write_bytes(pictures[1])
    lines = tmp_path / "chats.jsonl"
    lines.write_bytes(_lines(_asks_about({"url": _uri(pictures[0])}, "deep/b.jpg")))
    (document,) = ChatSource(images=tmp_path)(ShardTask("t", str(lines)))
    assert _spoken(document) == said
    assert [segment.suffix for segment in document.segments[:2]] == ["jpeg", "jpg"]


@pytest.mark.parametrize("images", [None, Path("/")])
@pytest.mark.parametrize("url", ["https://example.com/a.jpg", "HTTP://127.0.0.1/a.jpg", "file:///etc/passwd"])
def test_an_address_is_refused_with_the_remedy(tmp_path: Path, url: str, images: Path | None) -> None:
    (tmp_path / "a.jsonl").write_bytes(_lines(_asks_about({"url": url})))
    (record,) = ChatSource(images=images)(ShardTask("t", str(tmp_path / "a.jsonl")))
    assert (record.unit, record.reason) == (Unit.SAMPLE, Reason.DOC_IMAGE_MISSING)
    assert url in record.detail
    assert "download it" in record.detail


@pytest.mark.parametrize("reference", [None, {}, {"url": None}, 7, ["a.jpg"], {"url": {"url": "a.jpg"}}])
def test_an_image_url_part_must_name_its_picture(reference: object) -> None:
    record = _read(_asks_about(reference), jpg=b"x")
    assert (record.unit, record.reason) == (Unit.SAMPLE, Reason.DOC_SCHEMA_ERROR)


def test_images_in_data_uris() -> None:
    find = ChatPictures(TarSample("k", {}, 0), None).find
    image = find("data:image/png;base64," + base64.b64encode(b"pixels").decode())
    assert (image.data, image.suffix) == (b"pixels", "png")
    for uri in ("data:image/png;base64,@@@", "data:image/png,abc", "data:"):
        with pytest.raises(RefusedError):
            find(uri)


def test_empty_texts_are_left_out() -> None:
    parts = [{"type": "text", "text": "  "}, {"type": "text", "text": "say"}]
    document = _read({"messages": [{"role": "user", "content": parts}, ASSISTANT]})
    assert document.segments == (TextSegment("say", Role.USER), TextSegment("b.", Role.ASSISTANT))
