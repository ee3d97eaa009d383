"""A few frames of a clip, with their times: which frames, and how they are decoded.

The container is read once without decoding (PyAV) into a frame table: presentation time of every frame of the
chosen stream. The wanted frames are chosen on that table, so that the choice never depends on a decoder,
and only they (and what they are predicted from) are decoded: a 20-minute clip costs a few milliseconds.

decord decodes where its own frame table agrees with ours; where it does not, or fails, PyAV does, by seeking
where presentation times can be trusted and sequentially elsewhere. Both honour rotation. Every frame is
checked to be the one that was asked for: a clip gives its frames exactly, or an error, never fillers.
"""

import io
import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.video_container import VideoError, container_format, mp4_matrix
from schemas.quarantine import Reason

Frame = NDArray[np.uint8]
"""(height, width, 3) uint8, RGB, upright."""

logger = logging.getLogger(__name__)

Matrix = tuple[int, int, int, int]
"""(a, b, c, d), each -1, 0 or 1: (1, 0, 0, 1) is upright, (0, 1, -1, 0) a quarter turn clockwise."""
UPRIGHT: Matrix = (1, 0, 0, 1)

_SEEKABLE_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libaom-av1", "mjpeg"})
"""Elsewhere (MPEG-4 part 2 in AVI and Matroska) a seek lands on wrong frames without saying so."""


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """Which frames of a clip become images."""

    num_frames: int = 4
    """Frames a clip; where it has fewer, the frame on screen at each chosen time is repeated."""
    rule: Literal["uniform_middle", "uniform_ends"] = "uniform_middle"
    """``uniform_middle``: the middle of each of ``num_frames`` equal parts of the duration (as SEED does).
    ``uniform_ends``: equal steps from the first frame to the last, both included."""
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """``auto``: decord, and PyAV for what decord cannot read."""
    min_frames: int = 1
    """Clips with fewer frames are refused."""
    max_frame_pixels: int = 8192 * 4320
    """Clips with larger pictures are refused before any is decoded."""

    def to_json(self) -> str:
        """As the options of a decode task."""
        return json.dumps(asdict(self), sort_keys=True)

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.min_frames < 1:
            raise ValueError(
                f"num_frames and min_frames must be at least 1, got {self.num_frames} and {self.min_frames}"
            )
        if self.rule not in ("uniform_middle", "uniform_ends"):
            raise ValueError(f"rule must be uniform_middle or uniform_ends, got {self.rule!r}")
        if self.decoder not in ("auto", "decord", "pyav"):
            raise ValueError(f"decoder must be auto, decord or pyav, got {self.decoder!r}")


@dataclass(frozen=True)
class ClipFrames:
    """The sampled frames of one clip."""

    frames: tuple[Frame, ...]
    times_s: tuple[float, ...]
    """Presentation time of each frame, in seconds from the first frame of the clip."""
    decoder: str
    """What decoded them, with its version: ``decord 0.6.0``."""
    duration_s: float


@dataclass(frozen=True)
class FrameTable:
    """The frames of one video stream in presentation order, known without decoding any."""

    stream: int
    """Index of the stream in its container."""
    codec: str
    width: int
    height: int
    pts: tuple[int, ...]
    """Presentation times in units of ``time_base_s``, ascending, without what an edit list hides."""
    end: int
    """When the last frame leaves the screen."""
    time_base_s: float
    key_pts: tuple[int, ...]
    """Presentation times of the key frames, hidden ones included, ascending."""
    has_exact_pts: bool
    """Every packet carries its own, distinct presentation time."""
    has_leading_pictures: bool
    """Some pictures come before a key frame on screen and after it in the file (open GOPs)."""
    display_matrix: Matrix


def sample_frames(data: bytes, sampling: FrameSampling) -> ClipFrames:
    """Frames of a clip, chosen by ``sampling``.

    Raises:
        VideoError: if the clip is damaged, has no pictures, too few, or too large ones.
    """
    container = container_format(data)
    table = read_frame_table(data, container)
    if table.width * table.height > sampling.max_frame_pixels:
        raise VideoError(Reason.VIDEO_TOO_LARGE, f"pictures of {table.width}x{table.height}")
    if len(table.pts) < sampling.min_frames:
        raise VideoError(
            Reason.VIDEO_TOO_FEW_FRAMES,
            f"{len(table.pts)} frames, at least {sampling.min_frames} are asked for",
        )
    positions = choose_positions(table.pts, table.end, sampling)
    frames, decoder = _decode(data, container, table, sorted(set(positions)), sampling.decoder)
    times = tuple((table.pts[position] - table.pts[0]) * table.time_base_s for position in positions)
    duration_s = (table.end - table.pts[0]) * table.time_base_s
    return ClipFrames(tuple(frames[position] for position in positions), times, decoder, duration_s)


def choose_positions(pts: Sequence[int], end: int, sampling: FrameSampling) -> list[int]:
    """Position in ``pts`` of the frame that is on screen at each chosen time; exact in integers.

    Args:
        pts: presentation times, ascending.
        end: when the last frame leaves the screen.
    """
    count, first = sampling.num_frames, pts[0]
    if sampling.rule == "uniform_ends" and count > 1:
        chosen = [first + step * (pts[-1] - first) // (count - 1) for step in range(count)]
    else:
        chosen = [first + (2 * part + 1) * (end - first) // (2 * count) for part in range(count)]
    return [max(bisect_right(pts, time) - 1, 0) for time in chosen]


def read_frame_table(data: bytes, container: str) -> FrameTable:
    """Frame table of the stream with the largest picture (the first of these), cover pictures left out.

    Raises:
        VideoError: if there is no video stream, or packets are missing or damaged.
    """
    try:
        with av.open(io.BytesIO(data), format=container) as clip:
            streams = [
                stream
                for stream in clip.streams.video
                if not stream.disposition & av.stream.Disposition.attached_pic and stream.codec_context
            ]
            if not streams:
                raise VideoError(
                    Reason.VIDEO_NO_VIDEO_STREAM, f"{len(clip.streams)} streams, none of pictures"
                )
            stream = max(streams, key=lambda each: each.width * each.height)
            return _table_of(clip, stream, mp4_matrix(data, stream.id) if container == "mp4" else None)
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        raise VideoError(Reason.VIDEO_DECODE_ERROR, f"cannot be read: {error}") from error


def _table_of(
    clip: av.container.InputContainer, stream: av.VideoStream, matrix: tuple[int, int, int, int] | None
) -> FrameTable:
    times, key_pts, num_packets = [], [], 0
    has_exact_pts, has_leading_pictures = True, False
    for packet in clip.demux(stream):
        if packet.size == 0:
            continue
        num_packets += 1
        if packet.is_corrupt:
            raise VideoError(Reason.VIDEO_DECODE_ERROR, f"packet {num_packets} is damaged")
        has_exact_pts &= packet.pts is not None
        time = packet.pts if packet.pts is not None else packet.dts
        if packet.is_keyframe and packet.pts is not None:
            key_pts.append(packet.pts)
        has_leading_pictures |= bool(key_pts) and time is not None and time < key_pts[-1]
        if time is not None and not packet.is_discard:
            times.append((time, packet.duration or 0))
    if num_packets < stream.frames:
        raise VideoError(
            Reason.VIDEO_DECODE_ERROR,
            f"its index lists {stream.frames} frames, {num_packets} are in the file",
        )
    if not times or not stream.width or not stream.height:
        raise VideoError(Reason.VIDEO_DECODE_ERROR, "a video stream without pictures")
    times.sort()
    pts = tuple(time for time, _ in times)
    last_duration = times[-1][1] or (pts[-1] - pts[-2] if len(pts) > 1 else 0)
    return FrameTable(
        stream=stream.index,
        codec=stream.codec_context.name,
        width=stream.width,
        height=stream.height,
        pts=pts,
        end=pts[-1] + last_duration,
        time_base_s=float(stream.time_base),
        key_pts=tuple(sorted(key_pts)),
        has_exact_pts=has_exact_pts and len(set(pts)) == len(pts),
        has_leading_pictures=has_leading_pictures,
        display_matrix=_quarter_turns(*matrix) if matrix else _display_matrix(clip, stream, pts[0]),
    )


def _display_matrix(clip: av.container.InputContainer, stream: av.VideoStream, pts: int) -> Matrix:
    """How the pictures are to be turned; FFmpeg tells it on decoded pictures only, so the first one is."""
    clip.seek(pts, stream=stream)
    stream.codec_context.thread_count = 1
    frame = next(clip.decode(stream), None)
    if frame is None:
        raise VideoError(Reason.VIDEO_DECODE_ERROR, "its first picture does not decode")
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    return _quarter_turns(a, b, c, d)


def _quarter_turns(a: int, b: int, c: int, d: int) -> Matrix:
    """A display matrix with free angles rounded to quarter turns."""
    if abs(b) + abs(c) > abs(a) + abs(d):
        return (0, _sign(b), _sign(c), 0)
    return (_sign(a), 0, 0, _sign(d))


def _sign(value: int) -> int:
    return 1 if value >= 0 else -1


def upright(picture: Frame, matrix: Matrix) -> Frame:
    """A picture as it is to be shown: what the display matrix (x', y') = (ax + cy, bx + dy) says."""
    a, b, c, d = matrix
    if not a:  # x and y change places
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[::d, ::a])


def _misleads_decord(table: FrameTable) -> bool:
    """decord 0.6.0 turns mirrored clips by 180 degrees instead, and after a seek in an open GOP it may count
    from the wrong key frame: on a real HEVC clip 58 of 100 frames asked for were others."""
    a, b, c, d = table.display_matrix
    return table.has_leading_pictures or a * d - b * c < 0


def _decode(
    data: bytes, container: str, table: FrameTable, positions: list[int], decoder: str
) -> tuple[dict[int, Frame], str]:
    """Pictures at ``positions`` (ascending) of the frame table, and what decoded them."""
    problems = []
    if decoder != "pyav" and not _misleads_decord(table):
        try:
            return _decode_with_decord(data, table, positions), _named("decord")
        except VideoError as error:
            if decoder == "decord":
                raise
            problems.append(f"decord: {error.detail}")
            logger.debug("falling back to PyAV: %s", error.detail)
    try:
        return _decode_with_pyav(data, container, table, positions), _named("av")
    except VideoError as error:
        detail = "; ".join([*problems, f"PyAV: {error.detail}"])
        raise VideoError(error.reason, detail) from error


@cache
def _named(package: str) -> str:
    return f"{package} {version(package)}"


def _decode_with_decord(data: bytes, table: FrameTable, positions: list[int]) -> dict[int, Frame]:
    """By index, where decord's own frame table has a frame at exactly our presentation times."""
    try:
        import decord
    except ImportError as error:  # no wheel for this platform
        raise VideoError(Reason.VIDEO_DECODE_ERROR, "is not installed") from error
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
        indices = _match_times(starts, table, positions)
        pictures = reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        raise VideoError(Reason.VIDEO_DECODE_ERROR, _one_line(error)) from error
    turned = not table.display_matrix[0]
    shape = (table.width, table.height, 3) if turned else (table.height, table.width, 3)
    if pictures.shape[1:] != shape:
        raise VideoError(Reason.VIDEO_DECODE_ERROR, f"pictures of shape {pictures.shape[1:]}, not {shape}")
    return dict(zip(positions, pictures, strict=True))


def _match_times(starts: NDArray[np.float64], table: FrameTable, positions: list[int]) -> list[int]:
    """decord's index of each position; its table starts earlier where an edit list hides frames."""
    hidden = len(starts) - len(table.pts)
    expected = (np.array(table.pts) - table.pts[0]) * table.time_base_s
    tolerance_s = 1e-3 + 1e-6 * expected[-1]  # decord tells times as float32, the first often moved to zero
    if hidden < 0 or np.abs(starts[hidden:] - starts[hidden] - expected).max() > tolerance_s:
        raise VideoError(
            Reason.VIDEO_DECODE_ERROR,
            f"its {len(starts)} frame times differ from the container's {len(table.pts)}",
        )
    return [hidden + position for position in positions]


def _one_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _decode_with_pyav(
    data: bytes, container: str, table: FrameTable, positions: list[int]
) -> dict[int, Frame]:
    try:
        with av.open(io.BytesIO(data), format=container) as clip:
            stream = clip.streams[table.stream]
            stream.codec_context.thread_count = 1
            if table.has_exact_pts and table.codec in _SEEKABLE_CODECS:
                decoder = _SeekingDecoder(clip, stream, table)
                found = {position: decoder.frame(position) for position in positions}
            else:
                found = _walk_frames(clip, stream, set(positions))
            return {
                position: upright(frame.to_ndarray(format="rgb24"), table.display_matrix)
                for position, frame in found.items()
            }
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(Reason.VIDEO_DECODE_ERROR, _one_line(error)) from error


class _SeekingDecoder:
    """Frames at exact presentation times, asked for in ascending order; decodes no stretch twice."""

    def __init__(self, clip: av.container.InputContainer, stream: av.VideoStream, table: FrameTable) -> None:
        self._clip = clip
        self._stream = stream
        self._table = table
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._last_pts: int | None = None

    def frame(self, position: int) -> av.VideoFrame:
        """The frame at a position of the table.

        The nearest key frame may not do: the pictures that precede an open-GOP key frame on screen follow it
        in the file, and need the one before. The last attempt is from the start of the clip.

        Raises:
            VideoError: if it does not decode.
        """
        pts, keys = self._table.pts[position], self._table.key_pts
        nearest = bisect_right(keys, pts)
        if self._last_pts is not None and (not nearest or keys[nearest - 1] <= self._last_pts):
            frame = self._advance(pts)  # no key frame in between: going on is shorter than to seek
            if frame is not None:
                return frame
        for start in [*reversed(keys[max(nearest - 2, 0) : nearest]), self._table.pts[0]]:
            self._clip.seek(start, stream=self._stream)
            self._frames = self._clip.decode(self._stream)
            frame = self._advance(pts)
            if frame is not None:
                return frame
        time_s = pts * self._table.time_base_s
        raise VideoError(Reason.VIDEO_DECODE_ERROR, f"no sound picture at {time_s:.3f} s")

    def _advance(self, pts: int) -> av.VideoFrame | None:
        """Decode up to ``pts``; None if the frame there is missing or damaged."""
        for frame in self._frames:
            self._last_pts = frame.pts
            if frame.pts == pts and not frame.is_corrupt:
                return frame
            if frame.pts is None or frame.pts >= pts:
                break
        return None


def _walk_frames(
    clip: av.container.InputContainer, stream: av.VideoStream, positions: set[int]
) -> dict[int, av.VideoFrame]:
    """Frames by their position in presentation order, decoded from the start of the clip."""
    found = {}
    for position, frame in enumerate(clip.decode(stream)):
        if position in positions and not frame.is_corrupt:
            found[position] = frame
            if len(found) == len(positions):
                return found
    missing = sorted(positions - found.keys())
    raise VideoError(Reason.VIDEO_DECODE_ERROR, f"no sound pictures at positions {missing}")
