"""Interleaved documents as WebDataset: ``key.json`` with ``texts`` and ``images``, members ``key.{i}.jpg``.

``texts`` and ``images`` are lists of the same length, as OBELICS publishes them: at each position exactly one
of the two is not null. ``images[i]`` is the suffix of a member of the same sample (``"3.jpg"``). It is looked
up among those members and nowhere else, whatever it says. Samples in the MMC4 layout are told by their fields
and read by `mmc4`. The rules are listed in `docs/inputs_documents.md`; each has a test.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.sources.captions import OnBadEncoding
from pipeline.sources.document_text import OnEndMarker, clean_text, split_at_end_marker
from pipeline.sources.each_sample import parse_json_member, read_each
from pipeline.sources.metadata import dump_fields, parse_metadata
from pipeline.sources.mmc4 import is_mmc4, read_mmc4_nodes
from pipeline.sources.records import RawDocument, RawImage, RawSegment, SourceItems
from pipeline.sources.tar_reader import TarSample
from schemas.document import TextSegment
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit

OnBadImage = Literal["drop-document", "drop-image"]
ERRORS_FIELD = "image_errors"
"""Where ingestion says, by suffix, why a picture could not be downloaded."""
Node = str | RawImage | RefusedError
"""Text, an image, or why there is no image in its place."""
FindImage = Callable[[str], RawImage | RefusedError]
"""The image that a document names, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class InterleavedConfig:
    """How a sample becomes a document."""

    on_end_marker: OnEndMarker = "break"
    """What to do with END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED: end a run of text there, or keep it as text."""
    on_bad_encoding: OnBadEncoding = "quarantine"
    """What to do with text that is not UTF-8 or holds NUL: refuse the document, or put U+FFFD."""
    max_document_bytes: int = 256 * 1024**2
    """A larger .json is refused (metadata_too_large)."""
    metadata_fields: tuple[str, ...] = ("url", "license", "could_have_url_duplicate")
    """Fields that are kept, of the .json and of its ``general_metadata``; "*" keeps all but the content."""

    def __post_init__(self) -> None:
        if self.max_document_bytes <= 0:
            raise ValueError(
                f"--interleaved.max-document-bytes must be positive, got {self.max_document_bytes}"
            )
        for name, allowed in (
            ("on_end_marker", ("break", "keep")),
            ("on_bad_encoding", ("quarantine", "replace")),
        ):
            if getattr(self, name) not in allowed:
                flag = f"--interleaved.{name.replace('_', '-')}"
                raise ValueError(f"{flag} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")


def read_interleaved(
    samples: Iterable[TarSample | QuarantineRecord],
    source: str,
    config: InterleavedConfig | None = None,
    on_bad_image: OnBadImage = "drop-image",
) -> SourceItems:
    """One document or one ``sample`` record for each sample, in order, and a record for each image that is
    left out and each member that no position refers to.

    Args:
        samples: of one shard; records among them are passed on.
        source: name of the shard in the records.
        config: the settings.
        on_bad_image: what a missing image costs: itself, or its document. A document that had images and
            keeps none is refused in either case.
    """
    config = config or InterleavedConfig()
    return read_each(samples, source, lambda sample: _read_sample(sample, source, config, on_bad_image))


def _read_sample(
    sample: TarSample, source: str, config: InterleavedConfig, on_bad_image: OnBadImage
) -> SourceItems:
    value = parse_json_member(sample, config.max_document_bytes, "interleaved")
    used: set[str] = {"json"}
    if is_mmc4(value):
        nodes, metadata = read_mmc4_nodes(value)
    else:
        nodes = read_nodes(value, lambda name: _find_member(sample, name, used, value))
        metadata = document_metadata(value)
    document, records = build_document(
        sample.key, nodes, metadata, source, config, sample.num_bytes, on_bad_image
    )
    for extension in sample.members.keys() - used:
        size = len(sample.members[extension])
        detail = "no position of the document refers to it"
        name = f"{sample.key}.{extension}"
        yield QuarantineRecord(source, name, Unit.MEMBER, Reason.MEMBER_IGNORED, detail, size)
    yield from records
    yield document


def _find_member(
    sample: TarSample, name: str, used: set[str], value: Mapping[str, Any]
) -> RawImage | RefusedError:
    """The member with this suffix. Anything that could be a path or an address refuses the document."""
    if not name or any(sign in name for sign in "/\\:\0"):
        raise RefusedError(Reason.DOC_IMAGE_MISSING, f"{name[:80]!r} is no suffix of a member")
    extension = name.lower()  # as the tar reader stores them
    used.add(extension)
    if extension in sample.members:
        return RawImage(sample.members[extension], extension)
    errors = value.get(ERRORS_FIELD)
    if extension in sample.refused:
        why = f"was refused: {sample.refused[extension]}"
    elif isinstance(errors, dict) and name in errors:
        why = f"was not downloaded: {str(errors[name])[:160]}"
    else:
        why = "is not in the shard"
    return RefusedError(Reason.DOC_IMAGE_MISSING, f"member .{name[:80]} {why}")


def read_nodes(value: Mapping[str, Any], find_image: FindImage) -> list[Node]:
    """The nodes of an OBELICS document in reading order.

    Raises:
        RefusedError: if ``texts`` and ``images`` are not two lists of the same length with exactly one entry
            at each position.
    """
    texts: Any = value.get("texts")
    images: Any = value.get("images")
    for name, entries in (("texts", texts), ("images", images)):
        if not isinstance(entries, list) or not all(
            entry is None or isinstance(entry, str) for entry in entries
        ):
            raise RefusedError(Reason.DOC_SCHEMA_ERROR, f"'{name}' must be a list of strings and nulls")
    if len(texts) != len(images):
        raise RefusedError(Reason.DOC_LENGTH_MISMATCH, f"{len(texts)} texts, {len(images)} images")
    nodes: list[Node] = []
    for position, (text, image) in enumerate(zip(texts, images, strict=True)):
        if text is not None and image is not None:
            raise RefusedError(Reason.DOC_NODE_BOTH_SET, f"position {position} has a text and an image")
        if text is None and image is None:
            raise RefusedError(Reason.DOC_NODE_BOTH_NULL, f"position {position} has neither text nor image")
        nodes.append(text if text is not None else find_image(image))
    return nodes


def document_metadata(value: Mapping[str, Any]) -> dict[str, Any]:
    """What a document says about itself: its own fields and those of ``general_metadata``, flat.

    The ``metadata`` of the nodes (addresses, alternative texts) is left out: it is larger than the codes.
    ``general_metadata`` may be an object or, as published, one in a string; anything else is passed over.
    """
    general = value.get("general_metadata")
    if isinstance(general, str):
        try:
            general = parse_metadata(general.encode("utf-8", "replace"), len(general) * 4)
        except RefusedError:
            general = None
    own = {name: entry for name, entry in value.items() if name not in _CONTENT_FIELDS}
    return (general if isinstance(general, dict) else {}) | own


_CONTENT_FIELDS = frozenset({"texts", "images", "metadata", "general_metadata", ERRORS_FIELD})


def build_document(
    key: str,
    nodes: Iterable[Node],
    metadata: dict[str, Any],
    source: str,
    config: InterleavedConfig,
    num_bytes: int,
    on_bad_image: OnBadImage,
) -> tuple[RawDocument, list[QuarantineRecord]]:
    """The document, and a record for every image that it loses.

    Raises:
        RefusedError: if a missing image costs the document, or nothing is left of it.
    """
    segments: list[RawSegment] = []
    records: list[QuarantineRecord] = []
    for position, node in enumerate(nodes):
        if isinstance(node, str):
            segments += _text_segments(node, config)
        elif isinstance(node, RawImage):
            segments.append(node)
        elif on_bad_image == "drop-document":
            raise RefusedError(node.reason, f"position {position}: {node.detail}")
        else:
            detail = f"position {position}: {node.detail}"
            records.append(QuarantineRecord(source, key, Unit.IMAGE, node.reason, detail))
    if records and not any(isinstance(segment, RawImage) for segment in segments):
        raise RefusedError(
            records[0].reason, f"none of its {len(records)} images is left; {records[0].detail}"
        )
    if not segments:
        raise RefusedError(Reason.DOC_EMPTY, "neither text nor image")
    return RawDocument(
        key, tuple(segments), dump_fields(metadata, config.metadata_fields), num_bytes
    ), records


def _text_segments(text: str, config: InterleavedConfig) -> Iterator[TextSegment]:
    for run in split_at_end_marker(
        clean_text(text, config.on_bad_encoding, "interleaved"), config.on_end_marker
    ):
        yield TextSegment(run)
