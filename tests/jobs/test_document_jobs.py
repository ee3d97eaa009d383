"""The jobs for videos, documents and chats from end to end, with the null tokenizer, without Ray."""

import gzip
import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import tokenize_chats, tokenize_obelics, tokenize_videos
from pipeline.null_encoder import NullEncoder
from pipeline.video_frames import FrameSampling, sample_frames
from schemas.document import Document, ImageSegment, Role, TextSegment
from schemas.quarantine import parse_records
from schemas.token_shard import check_token_shard, read_documents
from tests.pipeline.tiny_shards import ledger_of
from tokenizer.preprocess import PreprocessConfig, load_image
from tokenizer.resize import squash

ROOT = Path(__file__).parents[2]
HOSTILE = ROOT / "tests/data/hostile"
FAST = ["--tokenizer", "null", "--num-actors", "0", "--decode-workers", "0", "--batch-size", "8"]


def _hostile(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.decompress((HOSTILE / f"tars/{name}.gz").read_bytes()))
    return path


def _documents(folder: Path) -> dict[str, Document]:
    found = {}
    for shard in sorted(folder.glob("*.parquet")):
        check_token_shard(shard)
        found |= {document.key: document for document in read_documents(shard)}
    return found


def _codes(pixels: np.ndarray) -> np.ndarray:
    return NullEncoder().start([pixels], 1)()[0]


def test_videos(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard = str(ROOT / "samples/videos/00000.tar")
    assert (
        tokenize_videos.main(["--input", shard, "--output", str(out), *FAST, "--frames.num-frames", "3"]) == 0
    )
    documents = _documents(out)
    assert len(documents) == 7
    with tarfile.open(shard) as tar:
        clip = sample_frames(tar.extractfile("000010001.webm").read(), FrameSampling(num_frames=3))
        caption = tar.extractfile("000010001.txt").read().decode()
    *images, text = documents["000010001"].segments
    assert text == TextSegment(caption)
    assert [image.time_s for image in images] == pytest.approx(clip.times_s)
    for image, frame in zip(images, clip.frames, strict=True):
        assert np.array_equal(image.codes, _codes(squash(frame, "bicubic")))
    assert json.loads(documents["000000001"].metadata)["decoder"].startswith("av ")
    assert json.loads(documents["000010001"].metadata)["decoder"].startswith("decord ")
    footer = check_token_shard(out / "00000.parquet")
    assert (footer.counts.images_read, footer.counts.images_written) == (21, 21)


def _damaged(clip: bytes, rng: random.Random) -> bytes:
    """A clip that is cut, or has bits turned, bytes overwritten, added or taken away."""
    place, num = rng.randrange(1, len(clip)), rng.choice([1, 4, 100, 5000])
    head = bytearray(clip)
    for _ in range(num):
        head[rng.randrange(min(len(clip), 4096 if num < 100 else len(clip)))] ^= 1 << rng.randrange(8)
    return rng.choice(
        [
            clip[:place],
            bytes(head),
            clip[:place] + rng.randbytes(num) + clip[place + num :],
            clip[:place] + bytes(num) + clip[place + num :],
            clip[:place] + rng.randbytes(num) + clip[place:],
            clip[:place] + clip[place + num :],
        ]
    )


def test_damaged_clips_cost_themselves_only(tmp_path: Path) -> None:
    """Real clips damaged at random: each comes out or stands in the ledger, and nothing hangs or dies."""
    rng = random.Random(3)
    with tarfile.open(ROOT / "samples/videos/00000.tar") as tar:
        names = [name for name in tar.getnames() if not name.endswith((".txt", ".json"))]
        clips = {name: tar.extractfile(name).read() for name in names}
    small = [name for name, clip in sorted(clips.items()) if len(clip) < 100_000]
    shard = tmp_path / "damaged.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(36):
            name = rng.choice(small)
            for suffix, data in ((name.partition(".")[2], _damaged(clips[name], rng)), ("txt", b"a clip")):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    flags = ["--input", str(shard), "--output", str(tmp_path / "out"), "--tokenizer", "null"]
    flags += ["--num-actors", "0", "--decode-workers", "2", "--decode-timeout", "10"]
    assert tokenize_videos.main(flags) == 0
    counts = check_token_shard(tmp_path / "out/damaged.parquet").counts
    refused = dict(counts.samples_quarantined)
    assert counts.samples_read == 36 == counts.documents_written + sum(refused.values())
    assert counts.documents_written >= 5
    assert counts.images_written == 4 * counts.documents_written
    assert refused["video_decode_error"] >= 12
    assert "decode_timeout" not in refused


def test_other_sampling_does_not_mix_into_the_same_folder(tmp_path: Path) -> None:
    shard = str(_hostile(tmp_path, "videos.tar"))
    assert tokenize_videos.main(["--input", shard, "--output", str(tmp_path / "out"), *FAST]) == 0
    with pytest.raises(ValueError, match="num_frames"):
        tokenize_videos.main(
            ["--input", shard, "--output", str(tmp_path / "out"), *FAST, "--frames.num-frames", "2"]
        )


@pytest.mark.parametrize("name", ["videos.tar", "interleaved.tar", "mmc4.tar"])
@pytest.mark.parametrize("policy", ["drop-image", "drop-document"])
def test_hostile_shards_balance(tmp_path: Path, name: str, policy: str) -> None:
    job = tokenize_videos if name == "videos.tar" else tokenize_obelics
    path, out = _hostile(tmp_path, name), tmp_path / "out"
    assert job.main(["--input", str(path), "--output", str(out), *FAST, "--on-bad-image", policy]) == 0
    shard = out / f"{path.stem}.parquet"
    counts = check_token_shard(shard).counts
    expected = json.loads((HOSTILE / "documents.json").read_text())
    cases = {case["key"]: case for case in expected["cases"] if case["tar"].endswith(name)}
    controls = set(expected["controls_that_must_survive"][name])
    assert counts.samples_read == len(cases) + len(controls)
    written = {document.key for document in read_documents(shard)}
    refused = [
        record.key for record in parse_records(ledger_of(shard).read_bytes()) if record.unit == "sample"
    ]
    assert Counter([*written, *refused]) == Counter([*cases, *controls])
    assert controls <= written
    for key, case in cases.items():
        if case["expect"] != "accept_or_quarantine":
            assert (key in written) == (case["expect"] == "accept"), key


def test_documents_keep_order_texts_and_pictures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pattern = str(ROOT / "samples/documents/*.tar")
    assert tokenize_obelics.main(["--input", pattern, "--output", str(out), *FAST]) == 0
    documents = _documents(out)
    for shard in sorted((ROOT / "samples/documents").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    _check_document(documents[name.removesuffix(".json")], tar, name)


def _check_document(document: Document, tar: tarfile.TarFile, name: str) -> None:
    value = json.loads(tar.extractfile(name).read())
    nodes = [
        (text, image)
        for text, image in zip(value["texts"], value["images"], strict=True)
        if image or text.strip()
    ]
    assert len(document.segments) == len(nodes)
    for segment, (text, image) in zip(document.segments, nodes, strict=True):
        if image is None:
            assert segment == TextSegment(text)
        else:
            data = tar.extractfile(f"{document.key}.{image}").read()
            assert np.array_equal(segment.codes, _codes(load_image(data, PreprocessConfig())))


def test_published_parquet_with_downloaded_pictures(tmp_path: Path) -> None:
    images = tmp_path / "images"
    urls = [
        url
        for row in pq.read_table(ROOT / "samples/documents/obelics.parquet").to_pylist()
        for url in row["images"]
        if url
    ]
    with tarfile.open(ROOT / "samples/documents/00001.tar") as tar:
        pictures = [tar.extractfile(name).read() for name in tar.getnames() if not name.endswith(".json")]
    (images / "00000").mkdir(parents=True)
    rows = []
    for number, url in enumerate(urls[: len(pictures)]):
        (images / f"00000/{number:09d}.jpg").write_bytes(pictures[number])
        rows.append({"url": url, "key": f"{number:09d}", "status": "success", "error_message": None})
    pq.write_table(pa.Table.from_pylist(rows), images / "00000.parquet")
    flags = [
        "--input",
        str(ROOT / "samples/documents"),
        "--images",
        str(images),
        "--output",
        str(tmp_path / "out"),
    ]
    assert tokenize_obelics.main([*flags, *FAST]) == 0
    counts = check_token_shard(tmp_path / "out/obelics.parquet.parquet").counts
    assert counts.samples_read == 11
    assert counts.images_written == len(pictures)


def test_chats_from_tar_and_json_lines(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tokenize_chats.main(["--input", str(ROOT / "samples/chats"), "--output", str(out), *FAST]) == 0
    documents = _documents(out)
    assert len(documents) == 9
    edit = documents["edit-0000"]
    assert [segment.role for segment in edit.segments] == [Role.USER, Role.USER, Role.ASSISTANT]
    assert [type(segment) for segment in edit.segments] == [ImageSegment, TextSegment, ImageSegment]
    two_pictures = documents["chat-0001"].segments
    assert [type(segment) for segment in two_pictures] == [
        ImageSegment,
        ImageSegment,
        TextSegment,
        TextSegment,
    ]
    assert documents["000000000"].segments[-1].role is Role.ASSISTANT


def test_llava_array_with_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "images/coco").mkdir(parents=True)
    with tarfile.open(ROOT / "samples/pairs/00000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".jpg"))
        picture = tar.extractfile(name).read()
    (tmp_path / "images/coco/1.jpg").write_bytes(picture)
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "This."}]
    names = ["coco/1.jpg", "coco/gone.jpg"]
    values = [{"id": name, "image": name, "conversations": turns} for name in names]
    (tmp_path / "mix.json").write_text(json.dumps(values))
    flags = ["--input", str(tmp_path / "mix.json"), "--output", str(tmp_path / "out"), *FAST]
    assert tokenize_chats.main([*flags, "--image-root", str(tmp_path / "images")]) == 0
    (document,) = _documents(tmp_path / "out").values()
    assert [segment.role for segment in document.segments] == [Role.USER, Role.USER, Role.ASSISTANT]
    assert np.array_equal(document.segments[1].codes, _codes(load_image(picture, PreprocessConfig())))
    counts = check_token_shard(tmp_path / "out/mix.json.parquet").counts
    assert (counts.samples_read, dict(counts.samples_quarantined)) == (2, {"doc_image_missing": 1})
    with pytest.raises(ValueError, match="no such folder"):
        tokenize_chats.main([*flags, "--images", str(tmp_path / "elsewhere")])


def test_a_chat_never_loses_an_image_alone() -> None:
    with pytest.raises(ValueError, match="always dropped whole"):
        tokenize_chats.main(["--input", "x", "--output", "y", *FAST, "--on-bad-image", "drop-image"])


SHARED = ROOT.parent / "shared/data/interleaved"


@pytest.mark.shared
def test_shared_documents_all_come_out_at_less_than_three_percent(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is missing")
    out = tmp_path / "out"
    assert tokenize_obelics.main(["--input", str(SHARED / "obelics_wds"), "--output", str(out), *FAST]) == 0
    documents = _documents(out)
    assert (len(documents), sum(len(document.images) for document in documents.values())) == (77, 232)
    originals = sum(len(text.encode()) for document in documents.values() for text in document.texts)
    for shard in sorted((SHARED / "obelics_wds").glob("*.tar")):
        with tarfile.open(shard) as tar:
            originals += sum(member.size for member in tar if not member.name.endswith(".json"))
    num_bytes = sum(path.stat().st_size for path in out.glob("*.parquet"))
    assert num_bytes < 0.03 * originals  # the paper reports 6 % for OBELISC


@pytest.mark.shared
def test_shared_mmc4_pictures_stand_before_their_sentences(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is missing")
    out = tmp_path / "out"
    assert tokenize_obelics.main(["--input", str(SHARED / "mmc4"), "--output", str(out), *FAST]) == 0
    documents = _documents(out)
    assert (len(documents), sum(len(document.images) for document in documents.values())) == (13, 56)
    with tarfile.open(SHARED / "mmc4/000000000.tar") as tar:
        for key, document in documents.items():
            value = json.loads(tar.extractfile(f"{key}.json").read())
            places = sorted(picture["matched_text_index"] for picture in value["image_info"])
            num_before = 0
            for segment in document.segments:
                if isinstance(segment, ImageSegment):
                    place = places.pop(0)
                    assert num_before == place
                else:
                    num_before += _num_sentences(segment.text, value["text_list"][num_before:])
            assert num_before == len(value["text_list"])


def _num_sentences(run: str, sentences: list[str]) -> int:
    """How many sentences, joined by blanks, make up a run of text."""
    for number in range(1, len(sentences) + 1):
        if " ".join(sentences[:number]) == run:
            return number
    raise AssertionError(f"{run[:60]!r} does not begin with {sentences[0][:60]!r}")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("docs.parquet", r"--images FOLDER.*jobs/ingest\.py"),
        ("docs.JSONL", r"jobs/tokenize_chats\.py"),
        ("urls.csv", r"@FILE"),
        ("dog.jpg", r"--sort=name"),
    ],
)
def test_what_is_no_tar_is_refused_before_it_counts_as_done(tmp_path: Path, name: str, remedy: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"whatever it is")
    with pytest.raises(ValueError, match=rf"{name}: no tar shard; .*{remedy}"):
        tokenize_obelics.main(["--input", str(path), "--output", str(tmp_path / "out"), *FAST])
    assert not (tmp_path / "out").exists()
