"""What a source yields: documents whose images are still bytes."""

from dataclasses import dataclass

from schemas.document import Role, TextSegment


@dataclass(frozen=True, slots=True, eq=False)
class RawImage:
    """One image as the source shard holds it."""

    data: bytes
    role: Role | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RawDocument:
    """A document before its images are tokenized."""

    key: str
    segments: tuple[TextSegment | RawImage, ...]
    metadata: str | None = None
