"""Every caption, json and tar case of EXPECT.json, on our copies and on the shared originals."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.inputs import SourceShard
from pipeline.read_shard import read_shard
from pipeline.sources.pairs import read_pairs
from pipeline.sources.records import RawDocument
from pipeline.sources.tar_reader import TarSample, read_samples
from schemas.quarantine import QuarantineRecord, Reason, Unit
from tests.pipeline.sources.tar_writing import HOSTILE, hostile_shard, is_complete

SHARED = Path(__file__).parents[4] / "shared" / "data" / "hostile"
EXPECT = json.loads((HOSTILE / "EXPECT.json").read_text(encoding="utf-8"))
CASES = {case["id"]: case for case in EXPECT["cases"]}
SAMPLE_CASES = [case for case in CASES.values() if case["cls"] in ("caption", "json")]
TAR_CASES = [case for case in CASES.values() if case["cls"] == "tar" and case["id"] != "tar_directory_named"]

COMPLETE_TARS = {"tar_empty", "tar_gzip_named", "tar_concatenated"}
"""Shard-level cases after which nothing is hidden: the shard is reported, and complete."""
REFUSED_SAMPLES = {
    "tar_truncated_mid_member": {"t2": Reason.TAR_TRUNCATED},
    "tar_links_and_devices": dict.fromkeys(["sym", "sym2", "hard"], Reason.IMAGE_MISSING)
    | dict.fromkeys(["dev", "fifo"], Reason.NON_REGULAR_MEMBER),
    "tar_duplicate_keys": {"dup": Reason.DUPLICATE_KEY, "same": Reason.DUPLICATE_MEMBER},
    "tar_captions_only": dict.fromkeys(["c0", "c1", "c2", "c3", "c4"], Reason.IMAGE_MISSING),
    "tar_images_only": dict.fromkeys(["i0", "i1", "i2"], Reason.CAPTION_MISSING),
    "tar_dots_and_case": {"photo": Reason.IMAGE_MISSING, "two": Reason.DUPLICATE_MEMBER},
    "tar_bad_header_checksum": {"t1": Reason.TAR_CORRUPT},
    "tar_member_size_lies_8gb": {"t1": Reason.TAR_TRUNCATED},
}
"""Samples that must be on record; of a key refused twice, the last reason."""
ACCEPTED_BEYOND_SURVIVORS = {
    "tar_duplicate_keys": {"dup"},
    "tar_gzip_named": {"g0", "g1", "g2"},
    "tar_dots_and_case": {"UP", "dir.with.dots/k1"},
    "tar_concatenated": {"q0", "q1"},
}
"""What we recover although the case does not ask for it."""


class Outcome:
    """What the reader and the pairs source made of one shard."""

    def __init__(self, data: bytes, name: str) -> None:
        read = list(read_samples(io.BytesIO(data), name))
        items = list(read_pairs(iter(read), name))
        self.documents = {item.key: item for item in items if isinstance(item, RawDocument)}
        self.records = [item for item in items if isinstance(item, QuarantineRecord)]
        num_samples = sum(isinstance(item, TarSample) or item.unit is Unit.SAMPLE for item in read)
        num_refused = len(self.of_unit(Unit.SAMPLE))
        assert num_samples == len(self.documents) + num_refused, "a sample was lost or made up"

    def of_unit(self, unit: Unit) -> list[QuarantineRecord]:
        return [record for record in self.records if record.unit is unit]


def shard_data(place: str, case: dict[str, Any]) -> bytes:
    if place == "copies":
        return hostile_shard(Path(case["tar"]).name)
    if not SHARED.is_dir():
        pytest.skip("the shared hostile data is not beside this checkout")
    return (SHARED / case["tar"]).read_bytes()


PLACES = pytest.mark.parametrize("place", ["copies", pytest.param("shared", marks=pytest.mark.shared)])


@PLACES
@pytest.mark.parametrize("case", SAMPLE_CASES, ids=lambda case: case["id"])
def test_sample_case(place: str, case: dict[str, Any]) -> None:
    outcome = Outcome(shard_data(place, case), case["tar"])
    refused = {record.key: record.reason for record in outcome.of_unit(Unit.SAMPLE)}
    key = case["key"]
    if case["expect"] == "accept":
        assert key in outcome.documents
    elif case["expect"] == "quarantine":
        assert refused[key].value == case["reason"]
    else:
        assert (key in outcome.documents) != (key in refused)
        if key in refused:
            assert refused[key].value == case["reason"]
    for control in EXPECT["controls_that_must_survive"][Path(case["tar"]).name]:
        assert control in outcome.documents
    assert is_complete(outcome.records)


@PLACES
@pytest.mark.parametrize("case", TAR_CASES, ids=lambda case: case["id"])
def test_tar_case(place: str, case: dict[str, Any]) -> None:
    outcome = Outcome(shard_data(place, case), Path(case["tar"]).name)
    survivors = set(case["must_survive"] or ()) | ACCEPTED_BEYOND_SURVIVORS.get(case["id"], set())
    assert set(outcome.documents) == survivors
    refused = {record.key: record.reason for record in outcome.of_unit(Unit.SAMPLE)}
    if case["id"] == "tar_non_adjacent":
        assert set(refused) == {"a", "b", "c"}
    else:
        assert refused == REFUSED_SAMPLES.get(case["id"], {})
    shard_reasons = [record.reason.value for record in outcome.of_unit(Unit.SHARD)]
    if case["expect"] == "shard_error_keep_rest":
        assert shard_reasons == [case["reason"]]
    is_damaged = bool(shard_reasons) and case["id"] not in COMPLETE_TARS
    assert is_complete(outcome.records) == (not is_damaged)
    if case["expect"] == "reject_member":
        assert {record.reason.value for record in outcome.of_unit(Unit.MEMBER)} == {case["reason"]}


@PLACES
@pytest.mark.parametrize(
    ("case_id", "reason"),
    [
        ("tar_truncated_at_boundary", Reason.TAR_TRUNCATED),
        ("tar_gzip_named", Reason.TAR_GZIP_MISLABELLED),
        ("tar_concatenated", Reason.TAR_CONCATENATED),
    ],
)
def test_what_is_recovered_is_reported_too(place: str, case_id: str, reason: Reason) -> None:
    outcome = Outcome(shard_data(place, CASES[case_id]), Path(CASES[case_id]["tar"]).name)
    assert [record.reason for record in outcome.of_unit(Unit.SHARD)] == [reason]


def test_directory_named_like_a_tar(tmp_path: Path) -> None:
    folder = tmp_path / "x.tar"
    folder.mkdir()
    items = list(read_shard(SourceShard(str(folder), "x")))
    assert [(item.unit, item.reason) for item in items] == [(Unit.SHARD, Reason.TAR_CORRUPT)]
    assert "directory" in items[0].detail
    assert not is_complete(items)


def test_every_case_is_covered() -> None:
    assert len(SAMPLE_CASES) == 35
    assert len(TAR_CASES) == 20
