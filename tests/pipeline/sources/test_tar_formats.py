"""Corners of the tar formats that tarfile does not write by itself; headers are built by hand."""

import bz2
import io
import lzma
import tarfile
from typing import Any

import pytest

from pipeline.sources.tar_members import MAX_EXTENDED_HEADER_BYTES
from pipeline.sources.tar_reader import TarSample, read_samples
from schemas.quarantine import QuarantineRecord, Reason, Unit
from tests.pipeline.sources.tar_writing import pair_members, tar_bytes

END = bytes(1024)


def header(name: bytes, size: int = 0, kind: bytes = b"0", signed: bool = False, **fields: Any) -> bytes:
    """One header block with a right checksum; ``fields`` maps ``at_<offset>`` to bytes."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[156:157] = kind
    for key, value in fields.items():
        start = int(key.removeprefix("at_"))
        block[start : start + len(value)] = value
    total = sum(block) - (256 * sum(byte > 127 for byte in block) if signed else 0)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes, data: bytes, **fields: Any) -> bytes:
    return header(name, len(data), **fields) + padded(data)


def extended(kind: bytes, payload: bytes) -> bytes:
    return header(b"extended", len(payload), kind) + padded(payload)


def pax(*records: bytes) -> bytes:
    """PAX records with their lengths, all below 100 bytes."""
    return b"".join(b"%02d " % (len(record) + 4) + record + b"\n" for record in records)


def read(data: bytes) -> tuple[dict[str, dict[str, bytes]], list[tuple[Unit, Reason]]]:
    items = list(read_samples(io.BytesIO(data), "shard"))
    samples = {item.key: item.members for item in items if isinstance(item, TarSample)}
    return samples, [(item.unit, item.reason) for item in items if isinstance(item, QuarantineRecord)]


GOOD = member(b"good.txt", b"good")
CORRUPT = (Unit.SHARD, Reason.TAR_CORRUPT)
NOT_REGULAR = [(Unit.MEMBER, Reason.NON_REGULAR_MEMBER), (Unit.SAMPLE, Reason.NON_REGULAR_MEMBER)]
"""A member that is no regular file, and its sample, which has no other."""
TRUNCATED = (Unit.SHARD, Reason.TAR_TRUNCATED)


def test_checksum_of_signed_bytes() -> None:
    """Some old tars summed the header as signed chars; it differs where a name is not ASCII."""
    name = "é.txt".encode()
    assert read(member(name, b"x", signed=True) + END) == ({"é": {"txt": b"x"}}, [])
    assert read(member(name, b"x", signed=False) + END) == ({"é": {"txt": b"x"}}, [])


def test_prefix_belongs_to_posix_headers_only() -> None:
    posix = {"at_257": b"ustar\x0000", "at_345": b"folder/deep"}
    gnu = {"at_257": b"ustar  \0", "at_345": b"14567012345\0"}  # GNU keeps times there
    assert read(member(b"a.txt", b"x", **posix) + END)[0] == {"folder/deep/a": {"txt": b"x"}}
    assert read(member(b"a.txt", b"x", **gnu) + END)[0] == {"a": {"txt": b"x"}}


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_members_without_data_have_none_whatever_their_size_says(kind: bytes) -> None:
    samples, records = read(header(b"link.jpg", 5000, kind) + GOOD + END)
    assert samples == {"good": {"txt": b"good"}}
    assert records == ([] if kind == b"5" else NOT_REGULAR)


@pytest.mark.parametrize("kind", [b"V", b"M", b"D", b"Z"])
def test_unknown_types_are_refused_with_their_data(kind: bytes) -> None:
    samples, records = read(header(b"x.jpg", 700, kind) + bytes(1024) + GOOD + END)
    assert samples == {"good": {"txt": b"good"}}
    assert records == NOT_REGULAR


def test_sparse_files_are_refused_and_passed_over() -> None:
    old = header(b"s.jpg", 600, b"S", at_482=b"\1") + b"m" * 504 + b"\1" + bytes(7) + b"m" * 504 + bytes(8)
    old += b"d" * 600 + bytes(424)
    new = extended(b"x", pax(b"GNU.sparse.major=1", b"GNU.sparse.name=t.jpg")) + member(
        b"raw.jpg", b"d" * 600
    )
    for sparse in (old, new):
        samples, records = read(sparse + GOOD + END)
        assert samples == {"good": {"txt": b"good"}}
        assert records == NOT_REGULAR


def test_pax_over_gnu_over_header() -> None:
    long_name = extended(b"L", b"gnu/" + b"n" * 200 + b".txt\0")
    link = extended(b"K", b"somewhere\0")
    assert read(link + long_name + member(b"short.txt", b"x") + END)[0] == {"gnu/" + "n" * 200: {"txt": b"x"}}
    both = extended(b"x", pax(b"path=pax.txt")) + long_name + member(b"short.txt", b"x")
    assert read(both + END)[0] == {"pax": {"txt": b"x"}}


def test_global_header_may_not_name_members() -> None:
    comment = extended(b"g", pax(b"comment=hello"))
    assert read(comment + GOOD + END) == ({"good": {"txt": b"good"}}, [])
    for record in (b"path=x.txt", b"size=3"):
        assert read(extended(b"g", pax(record)) + GOOD + END) == ({}, [CORRUPT])


@pytest.mark.parametrize(
    "payload",
    [
        b"nonsense",
        b"99 path=x\n",
        b"09 path=x",
        b"0 path=x\n",
        b"-9 path=x\n",
        b"06 path\n",
        pax(b"size=-1"),
        pax(b"size=9e9"),
    ],
)
def test_damaged_pax_records(payload: bytes) -> None:
    assert read(extended(b"x", payload) + GOOD + END) == ({}, [CORRUPT])


def test_extended_headers_are_bounded_and_complete() -> None:
    fits, too_long = (
        extended(b"x", b"%d comment=%s\n" % (size, b"c" * (size - 17))) + GOOD + END
        for size in (MAX_EXTENDED_HEADER_BYTES, MAX_EXTENDED_HEADER_BYTES + 1)
    )
    assert read(fits) == ({"good": {"txt": b"good"}}, [])
    assert read(too_long) == ({}, [CORRUPT])
    assert read(fits[:5000]) == ({}, [TRUNCATED])
    assert read(extended(b"K", b"x") * 15 + GOOD + END)[0] == {"good": {"txt": b"good"}}
    assert read(extended(b"K", b"x") * 16 + GOOD + END) == ({}, [CORRUPT])
    whole = extended(b"L", b"n" * 900)
    assert read(whole[:1000]) == ({}, [TRUNCATED])
    assert read(whole) == ({}, [TRUNCATED])
    assert read(whole + END) == ({}, [TRUNCATED])


def test_number_fields() -> None:
    for field in (b"00000000004\0", b"          4 ", b"4\0garbage!!!", b"\x80" + bytes(10) + b"\x04"):
        assert read(header(b"a.txt", at_124=field) + padded(b"good") + END)[0] == {"a": {"txt": b"good"}}
    for field in (b"0o4\0", b"-4\0", b"8\0", b"4_4\0", b"\x80" + b"\xff" * 11, b"\xff" * 12):
        assert read(header(b"a.txt", at_124=field) + padded(b"good") + END) == ({}, [CORRUPT])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bz2.compress(GOOD + END), "bzip2 data"),
        (lzma.compress(GOOD + END), "xz data"),
        (b"PK\x03\x04" * 200, "zip data"),
        (b"<!DOCTYPE html><title>404</title>", "error page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"short", "not a tar"),
        (GOOD + b"\x07" * 512 + END, "byte 1024: damaged tar header"),
    ],
)
def test_damage_is_told_in_words(data: bytes, words: str) -> None:
    *_, record = read_samples(io.BytesIO(data), "shard")
    assert isinstance(record, QuarantineRecord)
    assert (record.unit, record.reason) == CORRUPT
    assert words in record.detail


def test_a_stream_that_gives_little_at_a_time() -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 100))

    data = tar_bytes(pair_members(5), tarfile.GNU_FORMAT)
    drops = list(read_samples(Dripping(data), "shard"))
    assert drops == list(read_samples(io.BytesIO(data), "shard"))
    assert len(drops) == 5


@pytest.mark.parametrize("link_first", [True, False])
def test_a_link_beside_a_member_of_its_name(link_first: bool) -> None:
    parts = [header(b"a.jpg", 0, b"2"), member(b"a.jpg", b"x")]
    samples, records = read(b"".join(parts if link_first else parts[::-1]) + GOOD + END)
    assert samples == {"good": {"txt": b"good"}}
    assert records == [(Unit.MEMBER, Reason.NON_REGULAR_MEMBER), (Unit.SAMPLE, Reason.DUPLICATE_MEMBER)]
