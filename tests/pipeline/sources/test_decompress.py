"""gzip and zstd streams: read by content, cut anywhere, damaged anywhere, bounded."""

import gzip
import io
import random
import struct
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.decompress import TarDamageError, compression_of, decompressed
from pipeline.sources.tar_reader import TarReaderConfig, TarSample, read_samples
from schemas.quarantine import QuarantineRecord, Reason, Unit
from tests.pipeline.sources.tar_writing import is_complete, pair_members, tar_bytes

NUM_SAMPLES = 40


def pack_gzip(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def pack_zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


PACKERS = pytest.mark.parametrize("pack", [pack_gzip, pack_zstd])
NOISE = random.Random(0)
TAR = tar_bytes([(name, NOISE.randbytes(len(data))) for name, data in pair_members(NUM_SAMPLES, 20_000)])


def unpack(data: bytes, max_bytes: int = 2**40) -> bytes:
    return decompressed(io.BytesIO(data), compression_of(data), b"", max_bytes).read()


def read(data: bytes, **bounds: int) -> tuple[list[TarSample], list[QuarantineRecord]]:
    items = list(read_samples(io.BytesIO(data), "a.tar.x", config=TarReaderConfig(**bounds)))
    samples = [item for item in items if isinstance(item, TarSample)]
    return samples, [item for item in items if isinstance(item, QuarantineRecord)]


@PACKERS
@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=5), st.integers(1, 400))
def test_any_number_of_members_or_frames(
    pack: Callable[[bytes], bytes], parts: list[bytes], repeat: int
) -> None:
    parts = [part * repeat for part in parts]
    assert unpack(b"".join(map(pack, parts))) == b"".join(parts)


def test_gzip_header_with_every_optional_field() -> None:
    plain = gzip.compress(b"hello", mtime=0)
    header = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x03\x00abc" + b"name\0" + b"comment\0" + b"\x12\x34"
    assert unpack(header + plain[10:]) == b"hello"


def test_gzip_zero_padding_is_allowed_and_garbage_is_not() -> None:
    assert unpack(pack_gzip(b"hello") + bytes(1000)) == b"hello"
    with pytest.raises(TarDamageError, match="not gzip"):
        unpack(pack_gzip(b"hello") + b"garbage")


@PACKERS
def test_a_compressed_tar_reads_like_the_plain_one(pack: Callable[[bytes], bytes]) -> None:
    samples, records = read(pack(TAR))
    assert samples == read(TAR)[0]
    assert len(samples) == NUM_SAMPLES
    assert not records
    assert is_complete(records)


@pytest.mark.parametrize("nibble", [0, 15])
def test_zstd_frames_between_skippable_ones_as_pzstd_writes_them(nibble: int) -> None:
    half = len(TAR) // 2
    packed = b""
    for part in (TAR[:half], TAR[half:]):
        frame = pack_zstd(part)
        packed += bytes([0x50 + nibble]) + b"\x2a\x4d\x18" + struct.pack("<II", 4, len(frame)) + frame
    assert compression_of(packed) == "zstd"
    samples, records = read(packed)
    assert len(samples) == NUM_SAMPLES
    assert not records
    assert is_complete(records)


@PACKERS
def test_a_cut_stream_keeps_what_is_whole(pack: Callable[[bytes], bytes]) -> None:
    packed, whole = pack(TAR), read(TAR)[0]
    for cut in [*range(1, 40), *range(40, len(packed) - 40, 30_011), *range(len(packed) - 40, len(packed))]:
        samples, records = read(packed[:cut])
        assert samples == whole[: len(samples)], cut
        assert len(samples) >= (cut / len(packed) * NUM_SAMPLES) - 8, (
            cut
        )  # a zstd block holds 128 KiB, six samples
        assert not is_complete(records), cut
        assert [record.reason for record in records if record.unit is Unit.SHARD], cut


@pytest.mark.parametrize("position", [-8, -1])
def test_wrong_gzip_checksum_or_length_loses_no_sample_but_is_reported(position: int) -> None:
    packed = bytearray(pack_gzip(TAR))
    packed[position] ^= 1
    samples, records = read(bytes(packed))
    assert len(samples) == NUM_SAMPLES
    assert [(record.unit, record.reason) for record in records] == [(Unit.SHARD, Reason.TAR_CORRUPT)]
    assert "checksum" in records[0].detail
    assert not is_complete(records)


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_gzip_stream_cut_in_its_trailer_loses_no_sample(cut: int) -> None:
    members = [("a.jpg", b"1"), ("a.json", b"{}"), ("a.txt", b"a"), ("b.jpg", b"2"), ("b.txt", b"b")]
    samples, records = read(pack_gzip(tar_bytes(members))[:-cut])
    assert [sample.key for sample in samples] == ["a", "b"]
    assert [(record.unit, record.reason) for record in records] == [(Unit.SHARD, Reason.TAR_TRUNCATED)]
    assert not is_complete(records)


@PACKERS
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_inside_never_raises_and_never_passes_unseen(
    pack: Callable[[bytes], bytes], data: st.DataObject
) -> None:
    packed = bytearray(pack(TAR))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    samples, records = read(bytes(packed))
    if is_complete(records):  # a byte that decides nothing: gzip's time stamp or operating system
        assert samples == read(TAR)[0]
    else:
        assert any(record.unit is Unit.SHARD for record in records)


@PACKERS
def test_a_bomb_stays_within_memory_and_limit(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(tar_bytes([("a.txt", bytes(300_000_000))]))
    tracemalloc.start()
    samples, records = read(bomb, max_decompressed_bytes=100_000_000, max_member_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == []
    assert "max_decompressed_bytes" in records[-1].detail
    assert not is_complete(records)
    assert peak < 75_000_000  # one bite of zstd gives up to 32 MiB, held twice while it is joined


@PACKERS
def test_compressed_data_under_a_plain_name_is_read_and_noted(pack: Callable[[bytes], bytes]) -> None:
    note, *samples = read_samples(io.BytesIO(pack(TAR)), "s3://b/00000.TAR")
    assert isinstance(note, QuarantineRecord)
    assert (note.unit, note.reason) == (Unit.SHARD, Reason.TAR_GZIP_MISLABELLED)
    assert is_complete([note])
    assert [type(sample) for sample in samples] == [TarSample] * NUM_SAMPLES
