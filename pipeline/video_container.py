"""What kind of file a clip is, and whether all of it is there: read from its first bytes, not from a decoder.

Decoders answer a cut file with fewer frames and no error (Matroska, AVI), and decord dies of a segmentation
fault on a cut AVI; the container itself says how long it should be. Naming the container also keeps FFmpeg
from guessing: a "clip" that is really an HLS or concat playlist would make it open other files and addresses.
"""

import struct
from collections.abc import Iterator

import numpy as np

from schemas.quarantine import Reason, RefusedError

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MP4_FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"})
_MP4_NEEDED_BOXES = frozenset({b"moov", b"moof", b"mdat"})
_STILL_PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_TS_PACKET_BYTES = 188
_AVI_INDEX_ENTRY = np.dtype([("name", "V4"), ("flags", "<u4"), ("offset", "<u4"), ("size", "<u4")])
_TKHD_MATRIX, _MVHD_MATRIX = (40, 52), (36, 48)


class VideoError(RefusedError):
    """A clip from which no frames can be had."""


def container_format(data: bytes) -> str:
    """FFmpeg's name of the demuxer for a clip, from its signature.

    Raises:
        VideoError: if it is empty, no video at all, a still picture, or cut short of its own declared length.
    """
    if not data:
        raise VideoError(Reason.VIDEO_EMPTY, "zero bytes")
    name = _signature(data)
    if name is None:
        raise VideoError(Reason.VIDEO_DECODE_ERROR, f"no known video container, starts with {data[:12]!r}")
    declared = {"mp4": _mp4_length, "matroska": _matroska_length, "avi": _riff_length}.get(name)
    if declared and (length := declared(data)) > len(data):
        raise VideoError(
            Reason.VIDEO_DECODE_ERROR, f"cut short: {name} declares {length} bytes, {len(data)} are there"
        )
    return name


def _signature(data: bytes) -> str | None:
    for magic, kind in _STILL_PICTURES.items():
        if data.startswith(magic):
            raise VideoError(Reason.VIDEO_TOO_FEW_FRAMES, f"a still picture ({kind}), not a video")
    if data[4:8] in _MP4_FIRST_BOXES:
        return "mp4"
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return "avi"
    if data[0] == 0x47 and data[_TS_PACKET_BYTES : _TS_PACKET_BYTES + 1] == b"\x47":
        return "mpegts"
    by_magic = {
        _EBML: "matroska",
        b"GIF8": "gif",
        b"FLV\x01": "flv",
        b"OggS": "ogg",
        b"\x00\x00\x01\xba": "mpeg",
        b"\x30\x26\xb2\x75": "asf",
    }
    return by_magic.get(data[:4])


def _mp4_boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start of the content, end) of the boxes in a stretch; the last may end beyond the data."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1 and start + 16 <= end:
            size = struct.unpack_from(">Q", data, content)[0]
            content += 8
        elif size == 0:  # "to the end of the file"
            size = end - start
        if size < 8:
            return
        yield kind, content, start + size
        start += size


def mp4_matrix(data: bytes, track_id: int) -> tuple[int, int, int, int] | None:
    """The 2x2 part (a, b, c, d) of a track's display matrix, 16.16 fixed point.

    None where it cannot be told so simply: no such track, or a matrix of the whole movie on top of it.
    """
    for kind, start, end in _mp4_boxes(data):
        if kind != b"moov":
            continue
        boxes = list(_mp4_boxes(data, start, min(end, len(data))))
        movie = [_matrix_at(data, content, _MVHD_MATRIX) for name, content, _ in boxes if name == b"mvhd"]
        if movie != [(1 << 16, 0, 0, 1 << 16)]:
            return None
        for name, track_start, track_end in boxes:
            if name == b"trak":
                for inner, content, _ in _mp4_boxes(data, track_start, min(track_end, len(data))):
                    if inner == b"tkhd" and _track_id(data, content) == track_id:
                        return _matrix_at(data, content, _TKHD_MATRIX)
    return None


def _matrix_at(data: bytes, box: int, offsets: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the matrix in a header, at one offset in version 0 of it and another in version 1."""
    start = box + offsets[data[box] == 1]
    if start + 20 > len(data):
        return None
    a, b, _, c, d = struct.unpack_from(">5i", data, start)
    return a, b, c, d


def _track_id(data: bytes, box: int) -> int | None:
    start = box + (20 if data[box] == 1 else 12)
    return struct.unpack_from(">I", data, start)[0] if start + 4 <= len(data) else None


def _mp4_length(data: bytes) -> int:
    """Bytes that the boxes holding pictures or their index need."""
    ends = {kind: end for kind, _, end in _mp4_boxes(data) if kind in _MP4_NEEDED_BOXES}
    if max(ends.values(), default=0) <= len(data) and b"moov" not in ends:
        raise VideoError(
            Reason.VIDEO_DECODE_ERROR, "mp4 without its index (no moov box): cut short or unfinished"
        )
    return max(ends.values())


def _matroska_length(data: bytes) -> int:
    """End of the Segment element; 0 where it was written as unknown (live recordings)."""
    _, size, body = _ebml_element(data, 0)
    identifier, size, body = _ebml_element(data, body + (size or 0))
    return body + size if identifier == _SEGMENT and size is not None else 0


def _ebml_element(data: bytes, start: int) -> tuple[bytes, int | None, int]:
    """(identifier, size or None if unknown, offset of the body) of the EBML element at ``start``."""
    identifier = data[start : start + 4]
    first = data[start + 4] if start + 4 < len(data) else 0
    if not first:
        return identifier, None, start + 5
    width = 9 - first.bit_length()
    value = int.from_bytes(data[start + 4 : start + 4 + width], "big") & ((1 << 7 * width) - 1)
    is_unknown = value == (1 << 7 * width) - 1
    return identifier, None if is_unknown else value, start + 4 + width


def avi_index_fits(data: bytes) -> bool:
    """Whether the chunks of an AVI lead to its index, and every entry of that to a chunk of its name.

    An OpenDML file may have its index elsewhere, which is not looked at.
    """
    chunks = dict(_avi_chunks(data))
    if b"movi" not in chunks or b"idx1" not in chunks:
        return b"movi" in chunks and b"indx" in data
    index = chunks[b"idx1"]
    size = min(int.from_bytes(data[index + 4 : index + 8], "little"), len(data) - index - 8)
    entries = np.frombuffer(data, _AVI_INDEX_ENTRY, size // _AVI_INDEX_ENTRY.itemsize, index + 8)
    names = entries["name"].copy().view(np.uint8).reshape(-1, 4)
    for base in (chunks[b"movi"], 0):  # offsets count from the list or, in some files, from the beginning
        places = entries["offset"].astype(np.int64) + base
        if places.size and places.max() + 4 <= len(data):
            found = np.frombuffer(data, np.uint8)[places[:, None] + np.arange(4)]
            if np.array_equal(found, names):
                return True
    return False


def _avi_chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(name, where it stands) of the chunks of the first RIFF; of lists the name of what they list."""
    place = 12
    while place + 12 <= len(data):
        name, size, listed = struct.unpack_from("<4sI4s", data, place)
        yield (listed, place + 8) if name == b"LIST" else (name, place)
        place += 8 + size + size % 2


def _riff_length(data: bytes) -> int:
    """End of the last RIFF chunk (OpenDML files have several)."""
    end = 0
    while data[end : end + 4] == b"RIFF":
        size = struct.unpack_from("<I", data, end + 4)[0] if end + 8 <= len(data) else 0
        end += 8 + size + size % 2
    return end - 1 if end == len(data) + 1 else end  # the padding byte of an odd last chunk is often left out
