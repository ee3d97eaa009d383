"""Image-text pairs in the img2dataset layout: ``key.jpg`` (or another image), ``key.txt``, ``key.json``.

The rules are listed in `docs/inputs.md`; each has a test.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.sources.captions import OnBadEncoding, decode_caption
from pipeline.sources.each_sample import read_each
from pipeline.sources.metadata import dump_fields, parse_metadata
from pipeline.sources.records import RawDocument, RawImage, RawVideo, SourceItems
from pipeline.sources.tar_reader import TarSample
from schemas.document import TextSegment
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif"}
    | {"jp2", "j2k", "jpf", "jxl", "ico", "ppm", "pgm", "tga", "svg"}
)
"""What counts as the image of a sample; whether it can be decoded is told by its content, later."""
DEFAULT_METADATA_FIELDS = (
    "url",
    "width",
    "height",
    "original_width",
    "original_height",
    "license",
    "similarity",
    "punsafe",
    "pwatermark",
    "clip_similarity_vitl14",
    "aesthetic_score_laion_v2",
    "watermark_score",
    "nsfw_score_opennsfw2",
)
"""What img2dataset writes and filters ask for, and the scores of LAION and COYO. `sha256` is left out: it is
random, and would cost more than half of what the codes of the image cost."""


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """How a sample becomes an image and its caption."""

    section: ClassVar[str] = "pairs"
    """Under which the flags of these settings stand."""
    caption_field: str = "caption"
    """Field of the .json that is the caption where there is no .txt; empty to accept only .txt."""
    max_caption_bytes: int = 64 * 1024
    """Longer captions are refused (caption_too_long)."""
    on_bad_encoding: OnBadEncoding = "quarantine"
    """What to do with a caption that is not UTF-8 or holds NUL: refuse it, or put U+FFFD."""
    metadata_fields: tuple[str, ...] = field(default=DEFAULT_METADATA_FIELDS)
    """Fields of the .json that are kept; "*" keeps all."""
    max_metadata_bytes: int = 1024**2
    """A larger .json is left out (metadata_too_large)."""

    def __post_init__(self) -> None:
        for name in ("max_caption_bytes", "max_metadata_bytes"):
            if getattr(self, name) <= 0:
                flag = f"--{self.section}.{name.replace('_', '-')}"
                raise ValueError(f"{flag} must be positive, got {getattr(self, name)}")
        if self.on_bad_encoding not in ("quarantine", "replace"):
            flag = f"--{self.section}.on-bad-encoding"
            raise ValueError(f"{flag} must be quarantine or replace, got {self.on_bad_encoding!r}")


def read_pairs(
    samples: Iterable[TarSample | QuarantineRecord], source: str, config: PairsConfig | None = None
) -> SourceItems:
    """One document (image, then caption) or one ``sample`` record for each sample, in order.

    Args:
        samples: of one shard; records among them are passed on.
        source: the shard as named on input, for the records.
        config: the settings.
    """
    return read_captioned(samples, source, config or PairsConfig(), _find_image)


def read_captioned(
    samples: Iterable[TarSample | QuarantineRecord],
    source: str,
    config: PairsConfig,
    find_media: Callable[[TarSample, dict[str, Any]], RawImage | RawVideo],
) -> SourceItems:
    """Samples of one image or clip and its caption as documents: what pairs and videos share.

    Args:
        samples: of one shard; records among them are passed on.
        source: the shard as named on input, for the records.
        config: the settings.
        find_media: the image or clip of a sample, which may look at its .json; raises RefusedError.
    """

    def read(sample: TarSample) -> SourceItems:
        value, text, fault = _read_metadata(sample, config)
        if fault is not None:
            name, size = f"{sample.key}.json", len(sample.members["json"])
            yield QuarantineRecord(source, name, Unit.MEMBER, fault.reason, fault.detail, size)
        segments = find_media(sample, value), TextSegment(_find_caption(sample, value, config))
        yield RawDocument(sample.key, segments, text, sample.num_bytes)

    return read_each(samples, source, read)


def _read_metadata(
    sample: TarSample, config: PairsConfig
) -> tuple[dict[str, Any], str | None, RefusedError | None]:
    """The parsed .json, what is kept of it, and why there is none although the sample has the member."""
    data = sample.members.get("json")
    if data is None:
        return {}, None, None
    try:
        value = parse_metadata(data, config.max_metadata_bytes, f"--{config.section}.max-metadata-bytes")
        return value, dump_fields(value, config.metadata_fields), None
    except RefusedError as fault:
        return {}, None, fault


def find_member(sample: TarSample, extensions: Collection[str], what: str, missing: Reason) -> str | None:
    """The extension of the only member that is one of ``extensions``; None if the sample never had one.

    Raises:
        RefusedError: ``duplicate_member`` for several; ``missing`` if the tar reader refused it.
    """
    found = [extension for extension in sample.members if extension in extensions]
    if len(found) > 1:
        raise RefusedError(
            Reason.DUPLICATE_MEMBER, f"{len(found)} {what} under one key: .{', .'.join(found)}"
        )
    if found:
        return found[0]
    for extension, reason in sample.refused.items():
        if extension in extensions:
            raise RefusedError(missing, f"its .{extension} was refused: {reason}")
    return None


def members_of(sample: TarSample) -> str:
    """What a sample has, for the detail of a record."""
    names = f"members: .{', .'.join(sample.members)}"[:200]
    has_dots = any("." in name for name in sample.members)
    return f"{names} (all behind the first dot of a name is its extension)" if has_dots else names


def _find_image(sample: TarSample, value: dict[str, Any]) -> RawImage:
    extension = find_member(sample, IMAGE_EXTENSIONS, "images", Reason.IMAGE_MISSING)
    if extension is not None:
        return RawImage(sample.members[extension], extension)
    detail = members_of(sample)
    if isinstance(value.get("status"), str) and value["status"] != "success":
        detail = f"img2dataset status {value['status'][:40]}: {str(value.get('error_message'))[:160]}"
    raise RefusedError(Reason.IMAGE_MISSING, detail)


def _find_caption(sample: TarSample, value: dict[str, Any], config: PairsConfig) -> str:
    """The .txt wins wherever there is one, even an empty one: the .json holds what the web page said."""
    if "txt" in sample.refused:
        raise RefusedError(Reason.CAPTION_MISSING, f"its .txt was refused: {sample.refused['txt']}")
    data = sample.members.get("txt")
    if data is None:
        stored = value.get(config.caption_field) if config.caption_field else None
        if not isinstance(stored, str):
            if "json" not in sample.members:
                raise RefusedError(Reason.CAPTION_MISSING, "neither .txt nor .json")
            found = "nothing" if stored is None else f"a {type(stored).__name__}"
            raise RefusedError(
                Reason.CAPTION_MISSING, f"no .txt, and {found} under '{config.caption_field}' in the .json"
            )
        data = stored.encode("utf-8", "surrogatepass")  # a lone surrogate is refused with the rest
    return decode_caption(data, config.max_caption_bytes, config.on_bad_encoding, config.section)
