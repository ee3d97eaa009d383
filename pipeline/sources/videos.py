"""Clips with captions in the video2dataset layout: ``key.mp4`` (or another container), ``.txt``, ``.json``.

The document is the sampled frames of the clip, then the caption. Which frames, and what decodes them, is for
`video_frames`; here a clip is bytes. Captions and metadata follow the rules of image-text pairs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.sources.pairs import PairsConfig, find_member, members_of, read_captioned
from pipeline.sources.records import RawVideo, SourceItems
from pipeline.sources.tar_reader import TarSample
from schemas.quarantine import QuarantineRecord, Reason, RefusedError

VIDEO_EXTENSIONS = frozenset(
    {"mp4", "m4v", "mov", "qt", "3gp", "mkv", "webm", "avi", "ts", "m2ts", "mts", "mpg", "mpeg"}
    | {"flv", "wmv", "asf", "ogv", "gif"}
)
"""What counts as the clip of a sample; whether it can be decoded is told by its content, later."""


@dataclass(frozen=True, kw_only=True)
class VideosConfig(PairsConfig):
    """How a sample becomes a clip and its caption; the caption as in pairs."""

    section: ClassVar[str] = "videos"
    metadata_fields: tuple[str, ...] = ("url", "license", "similarity", "clip_similarity")
    """Fields of the .json that are kept; "*" keeps all (``video_metadata`` alone exceeds the codes)."""
    max_metadata_bytes: int = 16 * 1024**2
    """A larger .json is left out (metadata_too_large): subtitles and ffprobe output make them long."""


def read_videos(
    samples: Iterable[TarSample | QuarantineRecord], source: str, config: VideosConfig | None = None
) -> SourceItems:
    """One document (clip, then caption) or one ``sample`` record for each sample, in order.

    Args:
        samples: of one shard; records among them are passed on.
        source: name of the shard in the records.
        config: the settings.
    """
    return read_captioned(samples, source, config or VideosConfig(), _find_clip)


def _find_clip(sample: TarSample, _: dict[str, Any]) -> RawVideo:
    extension = find_member(sample, VIDEO_EXTENSIONS, "clips", Reason.VIDEO_MISSING)
    if extension is None:
        raise RefusedError(Reason.VIDEO_MISSING, members_of(sample))
    if not sample.members[extension]:
        raise RefusedError(Reason.VIDEO_EMPTY, f"its .{extension} has zero bytes")
    return RawVideo(sample.members[extension], extension)
