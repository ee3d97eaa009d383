"""What a source yields: documents whose images are still bytes as they came.

A source is a generator function ``(samples, source, config) -> SourceItems`` over the samples of one shard
(`tar_reader.read_samples`). It passes on the records it is given, and answers every
sample with exactly one document or one record of unit ``sample``; records of other units come in addition.
The pipeline decodes and tokenizes the images, each then an ImageSegment in the place of its RawImage.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from schemas.document import Role, TextSegment
from schemas.quarantine import QuarantineRecord


@dataclass(frozen=True, slots=True)
class RawImage:
    """One image, not decoded."""

    data: bytes
    suffix: str
    """Extension of its member, for messages only; the format is told by content."""
    role: Role | None = None
    time_s: float | None = None
    """Videos only: time of the frame within its clip, in seconds."""


@dataclass(frozen=True, slots=True)
class RawVideo:
    """One clip, not decoded: its sampled frames stand in its place, in order, as one image segment each."""

    data: bytes
    suffix: str
    """Extension of its member, for messages only; the container is told by content."""
    role: Role | None = None


RawSegment = TextSegment | RawImage | RawVideo


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A document before its images are codes; see `schemas.document.Document`."""

    key: str
    segments: tuple[RawSegment, ...]
    metadata: str | None = None
    num_bytes: int = 0
    """Of the sample's members together, for the ledger if it is refused later."""

    @property
    def images(self) -> list[RawImage]:
        return [segment for segment in self.segments if isinstance(segment, RawImage)]


SourceItems = Iterator[RawDocument | QuarantineRecord]
