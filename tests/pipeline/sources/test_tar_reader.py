"""The tar reader against tarfile and webdataset on sound tars, and against every kind of damage."""

import io
import random
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset.tariterators as wds
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.sources.counting_reader import CountingReader
from pipeline.sources.decompress import TarDamageError
from pipeline.sources.member_names import split_name
from pipeline.sources.tar_members import NextTar, TarWalk
from pipeline.sources.tar_reader import TarReaderConfig, TarSample, read_samples
from schemas.quarantine import QuarantineRecord, Reason, Unit
from tests.pipeline.sources.tar_writing import is_complete, pair_members, tar_bytes

SAMPLES = Path(__file__).parents[3] / "samples" / "pairs"
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
Samples = list[tuple[str, dict[str, bytes]]]


def read(data: bytes, config: TarReaderConfig | None = None) -> tuple[Samples, list[QuarantineRecord]]:
    """Read a shard in memory; conservation is checked on every tar of every test."""
    config = config or TarReaderConfig()
    items = list(read_samples(io.BytesIO(data), "shard", config=config))
    samples = [(item.key, item.members) for item in items if isinstance(item, TarSample)]
    records = [item for item in items if isinstance(item, QuarantineRecord)]
    accounted = [item.key for item in items if isinstance(item, TarSample) or item.unit is Unit.SAMPLE]
    assert accounted == keys_of_runs(data, config)
    return samples, records


def keys_of_runs(data: bytes, config: TarReaderConfig) -> list[str]:
    """Key of each run of members with one key, in order; of the run that damage cut, too."""
    walk = TarWalk(CountingReader(io.BytesIO(data)), config.max_member_bytes)
    keys: list[str | None] = [None]

    def add(name: bytes) -> None:
        key, _ = split_name(name)
        if isinstance(key, str) and key != keys[-1]:
            keys.append(key)

    try:
        for member in walk:
            if isinstance(member, NextTar):
                keys.append(None)
            elif member.reason is not Reason.MEMBER_IGNORED:
                add(member.name)
    except TarDamageError:
        if walk.unfinished_name is not None:
            add(walk.unfinished_name)
    return [key for key in keys if key is not None]


def webdataset_samples(data: bytes) -> Samples:
    def members() -> Iterator[dict]:
        for member in wds.tar_file_iterator(io.BytesIO(data)):
            yield member | {"__url__": ""}

    return [
        (sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__")})
        for sample in wds.group_by_keys(members())
    ]


def shard_reasons(records: list[QuarantineRecord]) -> list[Reason]:
    return [record.reason for record in records if record.unit is Unit.SHARD]


# -- sound tars ---------------------------------------------------------------------------------------

WORD = st.text("abXY09_-é鍵 ", min_size=1, max_size=12)
EXTENSION = st.lists(st.sampled_from(["jpg", "JPG", "txt", "json", "1", "seg"]), min_size=1, max_size=3).map(
    ".".join
)
FOLDER = st.lists(st.sampled_from(["part0", "v1.2", "deep" * 20, "."]), max_size=4).map(
    lambda parts: "".join(part + "/" for part in parts)
)


@st.composite
def sound_members(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """Members of samples with unique keys, each sample's members adjacent and distinct."""
    keys = draw(st.lists(st.tuples(FOLDER, WORD).map("".join), max_size=6, unique=True))
    members = []
    for key in keys:
        extensions = draw(st.lists(EXTENSION, min_size=1, max_size=4, unique_by=str.lower))
        sizes = draw(st.lists(st.sampled_from([0, 1, 511, 512, 513, 5000]), min_size=4, max_size=4))
        members += [
            (f"{key}.{extension}", random.Random(key).randbytes(size))
            for extension, size in zip(extensions, sizes, strict=False)
        ]
    return members


@settings(max_examples=150, deadline=None)
@given(sound_members(), st.sampled_from(FORMATS), st.booleans())
def test_groups_and_bytes_equal_webdataset(
    members: list[tuple[str, bytes]], tar_format: int, has_global_header: bool
) -> None:
    headers = {"comment": "made by a test"} if has_global_header and members else None
    assume(not any(name.startswith("__") for name, _ in members))
    try:
        data = tar_bytes(members, tar_format, headers)
    except ValueError:  # ustar cannot hold this name
        assume(False)
    samples, records = read(data)
    assert samples == webdataset_samples(data)
    assert shard_reasons(records) == ([] if members else [Reason.TAR_EMPTY])
    assert all(record.unit is Unit.SHARD for record in records)
    assert is_complete(records)


@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.tar")), ids=lambda path: path.stem)
def test_the_sample_shards_read_as_webdataset_reads_them(path: Path) -> None:
    data = path.read_bytes()
    samples, records = read(data)
    assert samples == webdataset_samples(data)
    assert len(samples) > 10
    assert not records
    assert is_complete(records)


def test_old_v7_header_with_a_folder() -> None:
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            folder = tarfile.TarInfo("d/")
            folder.type = tarfile.AREGTYPE
            tar.addfile(folder)
            info = tarfile.TarInfo("d/a.txt")
            info.type, info.size = tarfile.AREGTYPE, 2
            tar.addfile(info, io.BytesIO(b"hi"))
        blocks = bytearray(buffer.getvalue())
    for start in (0, 512):  # strip the ustar magic and sum again
        blocks[start + 257 : start + 265] = bytes(8)
        blocks[start + 148 : start + 156] = b" " * 8
        total = sum(blocks[start : start + 512])
        blocks[start + 148 : start + 156] = b"%06o\0 " % total
    samples, records = read(bytes(blocks))
    assert samples == [("d/a", {"txt": b"hi"})]
    assert not records


def test_base_256_size_is_read() -> None:
    data = bytearray(tar_bytes([("a.txt", b"hello")], tarfile.USTAR_FORMAT))
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert read(bytes(data))[0] == [("a", {"txt": b"hello"})]


def test_negative_base_256_size_is_damage() -> None:
    data = bytearray(tar_bytes([("a.txt", b"hello")], tarfile.USTAR_FORMAT))
    data[124:136] = b"\xff" * 12
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    samples, records = read(bytes(data))
    assert samples == []
    assert shard_reasons(records) == [Reason.TAR_CORRUPT]
    assert not is_complete(records)


def test_pax_size_overrides_the_header() -> None:
    """A member over 8 GiB has its size only in the PAX record; here a small one plays its part."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.txt")
        info.size, info.pax_headers = 5, {"size": "5", "path": "b.txt"}
        tar.addfile(info, io.BytesIO(b"hello"))
    data = bytearray(buffer.getvalue())
    data[1024 + 124 : 1024 + 136] = b"00000000000\0"
    data[1024 + 148 : 1024 + 156] = b" " * 8
    data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])
    assert read(bytes(data))[0] == [("b", {"txt": b"hello"})]


# -- damage -------------------------------------------------------------------------------------------

NUM_SAMPLES = 4


@pytest.fixture(scope="module")
def pairs() -> tuple[bytes, Samples, list[tuple[int, int]]]:
    """A sound tar, its samples, and (header offset, data end) of every member."""
    data = tar_bytes(pair_members(NUM_SAMPLES), tarfile.USTAR_FORMAT)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        spans = [(info.offset, info.offset_data + info.size) for info in tar]
    return data, read(data)[0], spans


def test_every_truncation_keeps_what_is_whole_and_nothing_else(
    pairs: tuple[bytes, Samples, list[tuple[int, int]]],
) -> None:
    data, samples, spans = pairs
    end_marker = -(-spans[-1][1] // 512) * 512
    for cut in range(0, end_marker + 1024):
        found, records = read(data[:cut])
        num_whole = sum(end <= cut for _, end in spans[2::3])
        if num_whole == 1 and cut < spans[3][0] + 512:
            num_whole = 0  # nothing tells yet that the first sample has no fourth member
        assert found == samples[:num_whole], cut
        is_sound = cut >= end_marker + 512
        assert is_complete(records) == is_sound, cut
        assert len(shard_reasons(records)) == (not is_sound), cut


@settings(max_examples=300, deadline=None)
@given(member=st.integers(0, 3 * NUM_SAMPLES - 1), position=st.integers(0, 511), value=st.integers(0, 255))
def test_a_changed_header_byte_never_mixes_samples(
    pairs: tuple[bytes, Samples, list[tuple[int, int]]], member: int, position: int, value: int
) -> None:
    data, samples, spans = pairs
    changed = bytearray(data)
    changed[spans[member][0] + position] = value
    found, records = read(bytes(changed))
    assert found == samples[: len(found)]
    if is_complete(records):  # the byte stayed, or stood in padding of the checksum field
        assert found == samples
    else:
        num_before = member // 3
        assert len(found) == (num_before if num_before != 1 else min(num_before, len(found)))
        assert shard_reasons(records) == [Reason.TAR_CORRUPT]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000), st.integers(0, 8000))
def test_garbage_never_raises(garbage: bytes, position: int) -> None:
    data = tar_bytes(pair_members(3), tarfile.GNU_FORMAT)
    read(data[:position] + garbage + data[position + len(garbage) :])
    read(garbage)


def test_lone_zero_block_ends_a_tar() -> None:
    data = tar_bytes(pair_members(2), tarfile.USTAR_FORMAT)
    end = data.rstrip(b"\0")
    padded = data[: -(-len(end) // 512) * 512]
    samples, records = read(padded + bytes(512))
    assert len(samples) == 2
    assert is_complete(records)
    assert not records


def test_zero_blocks_in_the_middle_do_not_hide_what_follows() -> None:
    first = tar_bytes(pair_members(2))
    second = tar_bytes([("z.jpg", b"z"), ("z.txt", b"z")])
    samples, records = read(first + bytes(51200) + second)
    assert [key for key, _ in samples] == ["000", "001", "z"]
    assert shard_reasons(records) == [Reason.TAR_CORRUPT]
    assert not is_complete(records), "the zeros may have been samples"


def test_every_hole_that_takes_a_header_is_reported(
    pairs: tuple[bytes, Samples, list[tuple[int, int]]],
) -> None:
    """Every run of blocks, overwritten by zeros as a disk or a sparse copy does."""
    data, _, spans = pairs
    headers = {offset // 512 for offset, _ in spans}
    num_blocks = -(-spans[-1][1] // 512)
    for first in range(num_blocks):
        for end in range(first + 1, num_blocks + 1):
            changed = data[: first * 512] + bytes((end - first) * 512) + data[end * 512 :]
            found, records = read(changed)
            if not headers.isdisjoint(range(first, end)):
                if end == 20:  # zeros up to the end of a record: just what `cat a.tar b.tar` looks like
                    assert shard_reasons(records), (first, end)
                    continue
                if end < num_blocks:  # at the very end they lengthen the end marker
                    assert Reason.TAR_CORRUPT in shard_reasons(records), (first, end)
                    assert not is_complete(records), (first, end)
            found_keys = [key for key, _ in found]
            assert found_keys == sorted(set(found_keys)), (first, end)


def test_a_hole_may_have_taken_members_of_the_sample_before_it() -> None:
    members = pair_members(3)
    data = bytearray(tar_bytes(members, tarfile.USTAR_FORMAT))
    second_txt = 512 * (3 + 2 + 2) + 512 * (3 + 2)
    assert data[second_txt:].startswith(b"001.txt")
    data[second_txt : second_txt + 1024] = bytes(1024)
    samples, records = read(bytes(data))
    assert [key for key, _ in samples] == ["000", "002"]
    assert [(record.key, record.reason) for record in records] == [
        ("001", Reason.TAR_CORRUPT),
        ("", Reason.TAR_CORRUPT),
    ]
    assert not is_complete(records)


def test_members_behind_a_hole_are_not_taken_for_their_sample() -> None:
    members = [("a.jpg", b"A"), ("a.json", b"{}"), ("a.txt", b"a"), ("b.jpg", b"B")]
    data = bytearray(tar_bytes(members, tarfile.USTAR_FORMAT))
    data[1024:2048] = bytes(1024)
    samples, records = read(bytes(data))
    assert samples == [("b", {"jpg": b"B"})]
    assert [(record.key, record.reason) for record in records if record.key] == [
        ("a", Reason.TAR_CORRUPT),
        ("a", Reason.DUPLICATE_KEY),
    ]


@pytest.mark.parametrize("num_zeros", [10_240 + 512, 1 << 20])
def test_zeros_alone_are_no_tar(num_zeros: int) -> None:
    samples, records = read(bytes(num_zeros))
    assert samples == []
    assert shard_reasons(records) == [Reason.TAR_CORRUPT]
    assert not is_complete(records)


def test_space_that_was_never_written_is_no_end_marker() -> None:
    """A download into a preallocated file, broken off between two samples."""
    data = tar_bytes(pair_members(3), tarfile.USTAR_FORMAT)
    third = data.index(b"002.jpg")
    _, records = read(data[:third] + bytes(100_000))
    assert shard_reasons(records) == [Reason.TAR_CORRUPT]
    assert not is_complete(records)


def test_a_sample_does_not_reach_across_an_end_marker() -> None:
    samples, records = read(tar_bytes([("a.jpg", b"1")]) + tar_bytes([("a.txt", b"2")]))
    assert samples == [("a", {"jpg": b"1"})]
    assert [(record.key, record.reason) for record in records] == [
        ("", Reason.TAR_CONCATENATED),
        ("a", Reason.DUPLICATE_KEY),
    ]


def test_garbage_behind_the_end_marker_is_reported() -> None:
    samples, records = read(tar_bytes(pair_members(2)) + b"garbage" * 100)
    assert len(samples) == 2
    assert shard_reasons(records) == [Reason.TAR_CORRUPT]
    assert not is_complete(records)


UNEQUAL = [("a.jpg", b"1"), ("a.json", b"{}"), ("a.txt", b"a"), ("b.jpg", b"2"), ("b.txt", b"b")]
"""The last sample has fewer members than the one before it."""


@pytest.mark.parametrize("members", [UNEQUAL, UNEQUAL[:3]], ids=["fewer", "alone"])
@pytest.mark.parametrize("junk", [b"\n", b"garbage!" * 100, b"x" * 512], ids=["byte", "garbage", "block"])
@pytest.mark.parametrize("num_zeros", [1024, 10_240])
def test_the_last_sample_is_whole_behind_an_end_marker(
    members: list[tuple[str, bytes]], junk: bytes, num_zeros: int
) -> None:
    data = tar_bytes(members, tarfile.USTAR_FORMAT)
    end = 1024 * len(members)
    samples, records = read(data[: end + num_zeros] + junk)
    assert len(samples) == len({name[0] for name, _ in members})
    assert [(record.unit, record.reason) for record in records] == [(Unit.SHARD, Reason.TAR_CORRUPT)]
    assert not is_complete(records)


def test_behind_a_lone_zero_block_nothing_vouches_for_the_last_sample() -> None:
    data = tar_bytes(UNEQUAL, tarfile.USTAR_FORMAT)[: 1024 * len(UNEQUAL) + 512]
    samples, records = read(data + b"x" * 512)
    assert [key for key, _ in samples] == ["a"]
    assert [record.key for record in records] == ["b", ""]


def test_interleaved_members_are_never_paired() -> None:
    members = [("a.jpg", b"A"), ("b.jpg", b"B"), ("a.txt", b"a"), ("b.txt", b"b")]
    samples, records = read(tar_bytes(members))
    assert samples == [("a", {"jpg": b"A"}), ("b", {"jpg": b"B"})]
    assert [(record.key, record.reason) for record in records] == [
        ("a", Reason.DUPLICATE_KEY),
        ("b", Reason.DUPLICATE_KEY),
    ]


def test_duplicate_member_refuses_the_sample_and_spares_its_neighbours() -> None:
    members = [("a.jpg", b"1"), ("b.jpg", b"1"), ("b.JPG", b"2"), ("b.txt", b"x"), ("c.jpg", b"1")]
    samples, records = read(tar_bytes(members))
    assert [key for key, _ in samples] == ["a", "c"]
    assert [(record.key, record.reason, record.num_bytes) for record in records] == [
        ("b", Reason.DUPLICATE_MEMBER, 3)
    ]


# -- bounds -------------------------------------------------------------------------------------------


def test_oversized_member_is_passed_over_and_named() -> None:
    members = [("a.jpg", b"1"), ("b.jpg", bytes(5000)), ("b.txt", b"x"), ("c.jpg", b"1")]
    samples, records = read(tar_bytes(members), TarReaderConfig(max_member_bytes=4999))
    assert samples == [("a", {"jpg": b"1"}), ("b", {"txt": b"x"}), ("c", {"jpg": b"1"})]
    assert [(record.key, record.unit, record.reason, record.num_bytes) for record in records] == [
        ("b.jpg", Unit.MEMBER, Reason.MEMBER_TOO_LARGE, 5000)
    ]
    assert is_complete(records)


def test_a_sample_of_refused_members_alone_is_a_sample_that_was_refused() -> None:
    members = [("a.jpg", b"1"), ("b.jpg", bytes(5000)), ("c.jpg", b"1"), ("b.txt", b"late")]
    samples, records = read(tar_bytes(members), TarReaderConfig(max_member_bytes=4999))
    assert [key for key, _ in samples] == ["a", "c"]
    assert [(record.key, record.unit, record.reason) for record in records] == [
        ("b.jpg", Unit.MEMBER, Reason.MEMBER_TOO_LARGE),
        ("b", Unit.SAMPLE, Reason.MEMBER_TOO_LARGE),
        ("b", Unit.SAMPLE, Reason.DUPLICATE_KEY),
    ]


def test_oversized_sample_is_refused() -> None:
    members = [(f"a.{index}.jpg", bytes(1000)) for index in range(10)] + [("b.jpg", b"1")]
    samples, records = read(tar_bytes(members), TarReaderConfig(max_sample_bytes=5000))
    assert samples == [("b", {"jpg": b"1"})]
    assert [(record.key, record.unit, record.num_bytes) for record in records] == [("a", Unit.SAMPLE, 10_000)]


@pytest.mark.parametrize("name", ["max_member_bytes", "max_sample_bytes", "max_decompressed_bytes"])
def test_bounds_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        TarReaderConfig(**{name: 0})


class EndlessTar(io.RawIOBase):
    """A tar of ``num_samples`` samples that never exists as a whole."""

    def __init__(self, num_samples: int, image_bytes: int) -> None:
        self._sample = tar_bytes(
            [("@@@@@@@@.jpg", bytes(image_bytes)), ("@@@@@@@@.txt", b"text")], tarfile.USTAR_FORMAT
        )
        self._sample = self._sample[: 1024 + image_bytes + -image_bytes % 512 + 512]
        self._left = num_samples
        self._number = 0
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self._pending and self._left:
            self._left -= 1
            self._number += 1
            self._pending = self._renamed(b"%08d" % self._number)
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def _renamed(self, key: bytes) -> bytes:
        data = bytearray(self._sample)
        second = len(data) - 1024
        for start in (0, second):
            data[start : start + 8] = key
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        return bytes(data)


def test_memory_does_not_grow_with_the_tar() -> None:
    num_samples, image_bytes = 3_500, 100_000
    num_found = 0
    tracemalloc.start()
    for item in read_samples(EndlessTar(num_samples, image_bytes), "shard"):
        num_found += isinstance(item, TarSample)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_found == num_samples
    assert peak < 3_000_000, f"{peak} bytes at the peak of a {num_samples * image_bytes} byte tar"


def test_lying_size_allocates_nothing() -> None:
    data = bytearray(tar_bytes([("a.jpg", b"x" * 100)], tarfile.USTAR_FORMAT))
    data[124:136] = b"00377777777\0"[:12]  # 64 MiB, below max_member_bytes
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    stream = io.BufferedReader(io.BytesIO(bytes(data)))  # unlike BytesIO it allocates what is asked for
    tracemalloc.start()
    records = list(read_samples(stream, "shard"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.reason for record in records] == [Reason.TAR_TRUNCATED] * 2
    assert peak < 18_000_000
