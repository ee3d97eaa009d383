"""A few frames of a clip, with their times: which frames, and how they are decoded.

The container is read once without decoding into a `frame_table`: presentation time of every frame of the
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

from pipeline.frame_table import FrameTable, Matrix, read_frame_table
from pipeline.video_container import VideoError, avi_index_fits, container_format
from schemas.quarantine import Reason

Frame = NDArray[np.uint8]
"""(height, width, 3) uint8, RGB, upright."""

logger = logging.getLogger(__name__)

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


def upright(picture: Frame, matrix: Matrix) -> Frame:
    """A picture as it is to be shown: what the display matrix (x', y') = (ax + cy, bx + dy) says."""
    a, b, c, d = matrix
    if not a:  # x and y change places
        picture, a, d = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[::d, ::a])


def _unfit_for_decord(data: bytes, container: str, table: FrameTable) -> str | None:
    """Why decord 0.6.0 would give wrong frames, or die; None for most clips.

    On a real HEVC clip with open GOPs, 58 of 100 frames asked for were others; every AVI without an index,
    and 17 of some 400 with bytes added or lost, ended in a segmentation fault.
    """
    a, b, c, d = table.display_matrix
    if table.has_leading_pictures:
        return "it may count from the wrong key frame in an open GOP"
    if a * d - b * c < 0:
        return "it turns mirrored pictures instead"
    if container == "avi" and not avi_index_fits(data):
        return "it crashes on an AVI without an index, or with one that is wrong"
    return None


def _decode(
    data: bytes, container: str, table: FrameTable, positions: list[int], decoder: str
) -> tuple[dict[int, Frame], str]:
    """Pictures at ``positions`` (ascending) of the frame table, and what decoded them."""
    problems = []
    if decoder != "pyav":
        try:
            if reason := _unfit_for_decord(data, container, table):
                raise VideoError(Reason.VIDEO_DECODE_ERROR, reason)
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
        with av.open(io.BytesIO(data), mode="r", format=container) as clip:
            stream = clip.streams[table.stream]
            assert isinstance(stream, av.VideoStream)
            stream.codec_context.thread_count = 1
            if table.has_exact_pts and table.codec in _SEEKABLE_CODECS:
                decoder = _SeekingDecoder(clip, stream, table)
                found = {position: decoder.frame(position) for position in positions}
            else:
                found = _walk_frames(clip, stream, set(positions))
            return {
                position: upright(frame.to_ndarray(format="rgb24").view(np.uint8), table.display_matrix)
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
