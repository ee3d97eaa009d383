"""Clips with captions in the video2dataset layout: ``key.mp4`` (or another container), ``.txt``, ``.json``.

The document is the sampled frames of the clip, then the caption. Which frames, and what decodes them, is for
`video_frames`; here a clip is bytes. Captions and metadata follow the rules of image-text pairs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.sources.pairs import PairsConfig, find_caption, read_metadata
from pipeline.sources.records import RawDocument, RawVideo, SourceItems
from pipeline.sources.tar_reader import TarSample
from schemas.document import TextSegment
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit

VIDEO_EXTENSIONS = frozenset(
    {"mp4", "m4v", "mov", "qt", "3gp", "mkv", "webm", "avi", "ts", "m2ts", "mts", "mpg", "mpeg"}
    | {"flv", "wmv", "asf", "ogv", "gif"}
)
"""What counts as the clip of a sample; whether it can be decoded is told by its content, later."""


@dataclass(frozen=True, kw_only=True)
class VideosConfig(PairsConfig):
    """How a sample becomes a clip and its caption; the caption as in pairs."""

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
    config = config or VideosConfig()
    for sample in samples:
        if isinstance(sample, QuarantineRecord):
            yield sample
        else:
            yield from _read_clip(sample, source, config)


def _read_clip(sample: TarSample, source: str, config: VideosConfig) -> SourceItems:
    value, text, fault = read_metadata(sample, config)
    if fault is not None:
        name, size = f"{sample.key}.json", len(sample.members["json"])
        yield QuarantineRecord(source, name, Unit.MEMBER, fault.reason, fault.detail, size)
    try:
        clip = _find_clip(sample)
        caption = find_caption(sample, value, config)
    except RefusedError as refusal:
        yield QuarantineRecord(
            source, sample.key, Unit.SAMPLE, refusal.reason, refusal.detail, sample.num_bytes
        )
        return
    yield RawDocument(sample.key, (clip, TextSegment(caption)), text, sample.num_bytes)


def _find_clip(sample: TarSample) -> RawVideo:
    found = [extension for extension in sample.members if extension in VIDEO_EXTENSIONS]
    if len(found) > 1:
        raise RefusedError(Reason.DUPLICATE_MEMBER, f"{len(found)} clips under one key: .{', .'.join(found)}")
    if found and not sample.members[found[0]]:
        raise RefusedError(Reason.VIDEO_EMPTY, f"its .{found[0]} has zero bytes")
    if found:
        return RawVideo(sample.members[found[0]], found[0])
    for extension, reason in sample.refused.items():
        if extension in VIDEO_EXTENSIONS:
            raise RefusedError(Reason.VIDEO_MISSING, f"its .{extension} was refused: {reason}")
    raise RefusedError(Reason.VIDEO_MISSING, f"members: .{', .'.join(sample.members)}"[:200])
