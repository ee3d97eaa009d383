"""The frames of a clip's video stream, known without decoding: when each is shown, and how it is turned.

The container is read once; whatever it does not tell (display matrices outside mp4) is asked of FFmpeg.
"""

import io
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from pipeline.video_container import VideoError, mp4_matrix
from schemas.quarantine import Reason

Matrix = tuple[int, int, int, int]
"""(a, b, c, d), each -1, 0 or 1: (1, 0, 0, 1) is upright, (0, 1, -1, 0) a quarter turn clockwise."""
UPRIGHT: Matrix = (1, 0, 0, 1)


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


def read_frame_table(data: bytes, container: str) -> FrameTable:
    """Frame table of the stream with the largest picture (the first of these), cover pictures left out.

    Raises:
        VideoError: if there is no video stream, or packets are missing or damaged.
    """
    try:
        with av.open(io.BytesIO(data), mode="r", format=container) as clip:
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
    if not times or not stream.width or not stream.height or stream.time_base is None:
        raise VideoError(Reason.VIDEO_DECODE_ERROR, "a video stream without pictures or times")
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
    matrix: Any = side_data
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    return _quarter_turns(a, b, c, d)


def _quarter_turns(a: int, b: int, c: int, d: int) -> Matrix:
    """A display matrix with free angles rounded to quarter turns."""
    if abs(b) + abs(c) > abs(a) + abs(d):
        return (0, _sign(b), _sign(c), 0)
    return (_sign(a), 0, 0, _sign(d))


def _sign(value: int) -> int:
    return 1 if value >= 0 else -1
