"""Every video, interleaved and mmc4 case of EXPECT.json, on copies in tests/data and on the shared originals.

A sample is followed to the end: read by its source, its clip or images decoded as the pipeline decodes them.
"""

import base64
import gzip
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources.interleaved import InterleavedConfig, read_interleaved
from pipeline.sources.records import RawDocument, RawImage, RawVideo
from pipeline.sources.tar_reader import TarSample, read_samples
from pipeline.sources.videos import read_videos
from pipeline.video_container import VideoError
from pipeline.video_frames import FrameSampling, sample_frames
from schemas.document import TextSegment
from schemas.quarantine import QuarantineRecord, Reason, Unit
from tokenizer.preprocess import ImageError, PreprocessConfig, load_image

COPIES = Path(__file__).parents[2] / "data/hostile"
SHARED = Path(__file__).parents[4] / "shared/data/hostile"
EXPECT = json.loads((COPIES / "documents.json").read_text())
CASES = {case["id"]: case for case in EXPECT["cases"]}
POLICIES = ("drop-image", "drop-document")

OTHER_REASONS = {
    "doc_empty_lists": Reason.DOC_EMPTY,
}
"""Where our closed list has a more telling word than the suggestion."""
ACCEPTED = {
    "vid_one_frame",
    "vid_gif_as_mp4",
    "vid_size_2x2",
    "doc_zero_images",
    "doc_zero_texts",
    "doc_three_hundred_images",
    "doc_text_1mb",
    "doc_order_matters",
    "mmc4_matrix_shape",
}
"""Cases that may go either way and come out here."""
ACCEPTED_WITHOUT_THE_IMAGE = {"doc_member_missing", "doc_image_corrupt"}
"""Come out with ``drop-image`` and are refused with ``drop-document``."""


@dataclass
class Outcome:
    """What became of one shard."""

    documents: dict[str, RawDocument] = field(default_factory=dict)
    frames: dict[str, tuple[float, ...]] = field(default_factory=dict)
    refused: dict[str, Reason] = field(default_factory=dict)
    records: list[QuarantineRecord] = field(default_factory=list)


def _shard(place: str, name: str) -> bytes:
    if place == "copies":
        return gzip.decompress((COPIES / f"tars/{name}.gz").read_bytes())
    if not SHARED.is_dir():
        pytest.skip("the shared hostile data is not beside this checkout")
    return (SHARED / "tars" / name).read_bytes()


@cache
def _outcome(place: str, name: str, policy: str) -> Outcome:
    outcome = Outcome()
    samples = read_samples(io.BytesIO(_shard(place, name)), name)
    items = (
        read_videos(samples, name)
        if name == "videos.tar"
        else read_interleaved(samples, name, on_bad_image=policy)
    )
    for item in items:
        if isinstance(item, QuarantineRecord):
            outcome.records.append(item)
            if item.unit is Unit.SAMPLE:
                outcome.refused[item.key] = item.reason
        else:
            _decode(item, outcome, policy)
    return outcome


def _decode(document: RawDocument, outcome: Outcome, policy: str) -> None:
    reasons = []
    for segment in document.segments:
        try:
            if isinstance(segment, RawImage):
                load_image(segment.data, PreprocessConfig())
            elif isinstance(segment, RawVideo):
                outcome.frames[document.key] = sample_frames(segment.data, FrameSampling()).times_s
        except (ImageError, VideoError) as error:
            reasons.append(error.reason)
    num_pictures = sum(not isinstance(segment, TextSegment) for segment in document.segments)
    if reasons and (policy == "drop-document" or len(reasons) == num_pictures):
        outcome.refused[document.key] = reasons[0]
    else:
        outcome.documents[document.key] = document


PLACES = pytest.mark.parametrize("place", ["copies", pytest.param("shared", marks=pytest.mark.shared)])


@PLACES
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case["id"])
def test_case(place: str, policy: str, case: dict[str, Any]) -> None:
    outcome = _outcome(place, Path(case["tar"]).name, policy)
    identity, key = case["id"], case["key"]
    assert (key in outcome.documents) != (key in outcome.refused), "lost, or both kept and refused"
    must_come_out = case["expect"] == "accept" or identity in ACCEPTED
    may_come_out = identity in ACCEPTED_WITHOUT_THE_IMAGE and policy == "drop-image"
    assert (key in outcome.documents) == (must_come_out or may_come_out)
    if key in outcome.refused:
        assert outcome.refused[key] == OTHER_REASONS.get(identity, case["reason"])


@PLACES
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", sorted(EXPECT["controls_that_must_survive"]))
def test_controls_survive(place: str, policy: str, name: str) -> None:
    outcome = _outcome(place, name, policy)
    assert set(EXPECT["controls_that_must_survive"][name]) <= outcome.documents.keys()


def _segments(key: str, name: str = "interleaved.tar") -> tuple[Any, ...]:
    return _outcome("copies", name, "drop-image").documents[key].segments


def test_reading_order_is_that_of_the_json_not_of_the_tar() -> None:
    samples = read_samples(io.BytesIO(_shard("copies", "interleaved.tar")), "x")
    members = next(item.members for item in samples if getattr(item, "key", "") == "doc_order_matters")
    expected = [members[f"{number}.jpg"] for number in range(11, -1, -1)]
    assert [segment.data for segment in _segments("doc_order_matters")] == expected


def test_three_hundred_images_and_their_texts_stay_in_order() -> None:
    segments = _segments("doc_three_hundred_images")
    assert Counter(type(segment).__name__ for segment in segments) == {"TextSegment": 300, "RawImage": 300}
    assert [segment.text for segment in segments[::2]] == [
        f"Picture number {number}." for number in range(300)
    ]


def test_the_same_member_can_stand_twice() -> None:
    first, text, second = _segments("doc_same_image_twice")
    assert first.data == second.data
    assert isinstance(text, TextSegment)


def test_markers_are_text_and_the_placeholder_is_a_break() -> None:
    texts = [segment.text for segment in _segments("doc_markers") if isinstance(segment, TextSegment)]
    assert texts == ["Look: <img><img_00042></img> and <s>", "</s><|endoftext|>", "next"]


def test_empty_strings_are_left_out() -> None:
    assert [type(segment) for segment in _segments("doc_empty_string_text")] == [RawImage]


def test_what_is_left_out_is_on_record() -> None:
    records = _outcome("copies", "interleaved.tar", "drop-image").records
    images = {record.key: record.reason for record in records if record.unit is Unit.IMAGE}
    assert images == {"doc_member_missing": Reason.DOC_IMAGE_MISSING}
    ignored = {record.key for record in records if record.unit is Unit.MEMBER}
    assert "doc_extra_member.5.jpg" in ignored


def test_two_pictures_of_one_sentence_keep_their_order() -> None:
    sample = next(
        item
        for item in read_samples(io.BytesIO(_shard("copies", "mmc4.tar")), "x")
        if getattr(item, "key", "") == "mmc4_two_same_sentence"
    )
    names = [picture["image_name"] for picture in json.loads(sample.members["json"])["image_info"]]
    segments = _segments("mmc4_two_same_sentence", "mmc4.tar")
    assert [getattr(segment, "text", "image") for segment in segments] == ["a", "image", "image", "b"]
    assert len(names) == 2


def test_metadata_has_no_list_that_may_not_fit_the_pictures_left() -> None:
    """One of three pictures was not downloaded; another may yet not decode."""
    pictures: list[dict[str, Any]] = [
        {"image_name": f"{number}.png", "matched_text_index": 0, "matched_sim": number / 10}
        for number in range(3)
    ]
    for number in (0, 2):
        pictures[number]["image_base64"] = base64.b64encode(b"picture").decode()
    value = {"url": "http://page/", "text_list": ["a"], "image_info": pictures}
    sample = TarSample("k", {"json": json.dumps(value).encode()}, 0)
    config = InterleavedConfig(metadata_fields=("*",))
    *records, document = read_interleaved([sample], "x", config)
    assert isinstance(document, RawDocument)
    assert [type(segment) for segment in document.segments] == [RawImage, RawImage, TextSegment]
    assert [record.reason for record in records] == [Reason.DOC_IMAGE_MISSING]
    assert json.loads(document.metadata) == {"url": "http://page/"}


def test_a_single_frame_is_repeated_and_says_so_in_its_times() -> None:
    assert _outcome("copies", "videos.tar", "drop-image").frames["vid_one_frame"] == (0.0, 0.0, 0.0, 0.0)
