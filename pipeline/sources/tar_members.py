"""Walks the members of one tar stream, strictly and without seeking.

Python's `tarfile` stops at a damaged header or at the first end marker without a word; this walk names
every such place. It never resynchronises: after damage nothing more of the stream is believed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.sources.counting_reader import CountingReader
from pipeline.sources.decompress import TarDamageError
from pipeline.sources.tar_header import (
    BLOCK_BYTES,
    DIRECTORY_TYPE,
    GNU_LONG_LINK,
    GNU_LONG_NAME,
    GNU_SPARSE,
    PAX_GLOBAL_TYPE,
    PAX_MEMBER_TYPES,
    REGULAR_TYPES,
    TYPE_NAMES,
    ZERO_BLOCK,
    HeaderError,
    TarHeader,
    apply_pax_records,
    parse_header,
    parse_pax_records,
)
from schemas.quarantine import Reason

MAX_EXTENDED_HEADER_BYTES = 1024 * 1024
"""PAX headers and GNU long names above it are taken as damage."""
MAX_EXTENDED_HEADERS = 16
"""Most of them before one member; a sound tar has at most four."""
_OTHER_FORMATS = (("bzip2", b"BZh"), ("xz", b"\xfd7zXZ"), ("zip", b"PK\x03\x04"), ("Parquet", b"PAR1"))
RECORD_BYTES = 20 * BLOCK_BYTES
"""Tar programs fill the last record up with zeros."""


@dataclass(slots=True)
class TarMember:
    """One member, its data read or the member refused."""

    name: bytes
    offset: int
    """Of its header in the (decompressed) tar, in bytes."""
    size: int
    data: bytes | None
    """None when it was refused and its bytes passed over."""
    reason: Reason | None = None
    """Why it was refused."""
    detail: str = ""


@dataclass(slots=True)
class NextTar:
    """A header behind zero blocks."""

    offset: int
    """Of the header."""
    is_joined: bool
    """It stands where a tar's last record ends, as ``cat a.tar b.tar`` leaves it. Anywhere else the zeros may
    as well be a hole that lost members."""


class TarWalk:
    """The members of a tar in order; iterate once.

    Args:
        source: the plain tar bytes.
        max_member_bytes: larger members are passed over and refused.

    Iteration ends normally only behind a sound end-of-archive marker; anything else raises TarDamageError
    after what was sound. ``unfinished_name`` then tells which member, if any, the damage cut, and
    ``is_behind_end`` whether it lies behind an end marker. Zeros that reach beyond the record that the
    marker stands in are no marker: a hole, or space that was allocated and never written.
    """

    def __init__(self, source: CountingReader, max_member_bytes: int) -> None:
        self._source = source
        self._max_member_bytes = max_member_bytes
        self._tar_offset = 0  # where the tar began that is being read
        self.unfinished_name: bytes | None = None
        self.is_behind_end = False

    def __iter__(self) -> Iterator[TarMember | NextTar]:
        read = self._source.read
        while True:
            offset = self._source.offset
            block = read(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                raise self._cut_at(offset, block)
            if block == ZERO_BLOCK:
                block = self._pass_zero_blocks(offset)
                if not block:
                    return
                end, offset = self._record_end(offset), self._source.offset - BLOCK_BYTES
                if offset == end:
                    self._tar_offset = offset
                yield NextTar(offset, is_joined=offset == end)
                self.is_behind_end = False
            header = self._full_header(block, offset)
            if header is not None:
                yield self._read_member(header, offset)

    def _full_header(self, block: bytes, offset: int) -> TarHeader | None:
        """The member's header with its long name and PAX records applied; None for what is no member."""
        long_name: bytes | None = None
        records: dict[str, bytes] = {}
        for num_extended in range(MAX_EXTENDED_HEADERS):
            try:
                header = parse_header(block)
            except HeaderError as error:
                raise TarDamageError(
                    Reason.TAR_CORRUPT, f"byte {offset}: {_describe(block, error)}"
                ) from None
            if header.type == GNU_LONG_NAME:
                long_name = self._extended_payload(header).partition(b"\0")[0]
            elif header.type == GNU_LONG_LINK:
                self._extended_payload(header)
            elif header.type in PAX_MEMBER_TYPES:
                records |= self._pax_records(header, offset)
            elif header.type == PAX_GLOBAL_TYPE:
                self._check_global_records(self._pax_records(header, offset), offset)
                if not num_extended:
                    return None
            else:
                break
            offset = self._source.offset
            block = self._source.read(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES or block == ZERO_BLOCK:
                raise TarDamageError(
                    Reason.TAR_TRUNCATED, f"byte {offset}: the tar ends after an extended header"
                )
        else:
            raise TarDamageError(Reason.TAR_CORRUPT, f"byte {offset}: too many extended headers in a row")
        if header.type == GNU_SPARSE and block[482]:
            self._skip_sparse_map()
        if long_name:
            header.name = long_name
        if not records:
            return header
        try:
            return apply_pax_records(header, records)
        except HeaderError as error:
            raise TarDamageError(Reason.TAR_CORRUPT, f"byte {offset}: {error}") from None

    def _read_member(self, header: TarHeader, offset: int) -> TarMember:
        size = header.size
        self.unfinished_name = header.name
        data: bytes | None = None
        reason, detail = self._refusal(header)
        if reason is None:
            data = self._source.read(size)
            num_read = len(data)
        else:
            num_read = self._source.skip(size)
        self._source.read(
            -size % BLOCK_BYTES
        )  # missing padding shows at the next header; this member is whole
        if num_read < size:
            raise TarDamageError(
                Reason.TAR_TRUNCATED,
                f"byte {offset}: member {_show(header.name)} claims {size} bytes, the tar has {num_read}",
            )
        self.unfinished_name = None
        return TarMember(header.name, offset, size, data, reason, detail)

    def _refusal(self, header: TarHeader) -> tuple[Reason | None, str]:
        if header.type in REGULAR_TYPES:
            if header.size <= self._max_member_bytes:
                return None, ""
            return Reason.MEMBER_TOO_LARGE, f"{header.size} bytes, limit {self._max_member_bytes}"
        if header.type == DIRECTORY_TYPE:
            return Reason.MEMBER_IGNORED, "directory"
        kind = TYPE_NAMES.get(header.type, f"type {chr(header.type)!r}")
        return Reason.NON_REGULAR_MEMBER, kind

    def _pax_records(self, header: TarHeader, offset: int) -> dict[str, bytes]:
        payload = self._extended_payload(header)
        try:
            return parse_pax_records(payload)
        except HeaderError as error:
            raise TarDamageError(Reason.TAR_CORRUPT, f"byte {offset}: {error}") from None

    def _check_global_records(self, records: dict[str, bytes], offset: int) -> None:
        for keyword in ("path", "size"):
            if keyword in records:
                raise TarDamageError(
                    Reason.TAR_CORRUPT, f"byte {offset}: a global PAX header sets {keyword!r} for all members"
                )

    def _extended_payload(self, header: TarHeader) -> bytes:
        offset = self._source.offset - BLOCK_BYTES
        if header.size > MAX_EXTENDED_HEADER_BYTES:
            raise TarDamageError(Reason.TAR_CORRUPT, f"byte {offset}: extended header of {header.size} bytes")
        padded = header.size + -header.size % BLOCK_BYTES
        payload = self._source.read(padded)
        if len(payload) < padded:
            raise TarDamageError(
                Reason.TAR_TRUNCATED, f"byte {offset}: the tar ends inside an extended header"
            )
        return payload[: header.size]

    def _skip_sparse_map(self) -> None:
        """Pass over the blocks that continue an old GNU sparse header."""
        while True:
            block = self._source.read(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                raise TarDamageError(Reason.TAR_TRUNCATED, "the tar ends inside a sparse header")
            if not block[504]:
                return

    def _pass_zero_blocks(self, marker: int) -> bytes:
        """Read on behind the zero block at this offset; returns the header there, empty at the end.

        A lone zero block at the end is accepted as the end marker: every member before it is whole.
        """
        end, block = self._record_end(marker), ZERO_BLOCK
        while block == ZERO_BLOCK:
            block = self._source.read(BLOCK_BYTES)
            if block.strip(b"\0"):
                self._check_trailing_header(block, self._source.offset - len(block))
                return block
            self.is_behind_end = marker + 2 * BLOCK_BYTES <= self._source.offset <= end
        if self._source.offset > end:
            raise TarDamageError(
                Reason.TAR_CORRUPT,
                f"byte {marker}: zeros to byte {self._source.offset}, but a tar record ends at byte {end}: "
                "a hole, or space that was never written",
            )
        return b""

    def _record_end(self, marker: int) -> int:
        """Where the record ends that holds an end marker at this offset."""
        size = marker - self._tar_offset + 2 * BLOCK_BYTES
        return self._tar_offset + size + -size % RECORD_BYTES

    def _check_trailing_header(self, block: bytes, offset: int) -> None:
        try:
            if len(block) < BLOCK_BYTES:
                raise HeaderError("it is cut short")
            parse_header(block)
        except HeaderError as error:
            raise TarDamageError(
                Reason.TAR_CORRUPT,
                f"byte {offset}: data after the end-of-archive marker is no tar header: {error}",
            ) from None

    def _cut_at(self, offset: int, block: bytes) -> TarDamageError:
        if not block:
            return TarDamageError(
                Reason.TAR_TRUNCATED, f"byte {offset}: the tar ends without end-of-archive marker"
            )
        if offset == 0:
            return TarDamageError(Reason.TAR_CORRUPT, f"byte 0: {_describe(block, None)}")
        return TarDamageError(Reason.TAR_TRUNCATED, f"byte {offset}: the tar ends inside a header block")


def _describe(block: bytes, error: HeaderError | None) -> str:
    """What stands where a header should be, for the person who reads the report."""
    start = block[:16]
    for name, magic in _OTHER_FORMATS:
        if start.startswith(magic):
            return f"{name} data, not a tar; tars may be plain, gzip or zstd"
    if block.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in the place of the tar: fetch the file itself (git lfs pull)"
    if start.lstrip()[:1] in (b"<", b"{"):
        return f"not a tar header but text that begins {start!r}: an error page saved as a shard?"
    return f"damaged tar header: {error}" if error else f"not a tar: it begins {start!r}"


def _show(name: bytes) -> str:
    return ascii(name.decode("utf-8", "backslashreplace")[:200])
