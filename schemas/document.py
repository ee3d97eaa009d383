"""A document: an ordered list of segments, each a run of text or one image as 32 codes.

Pairs, videos, interleaved pages and chats are all documents; attention may not cross their bounds.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from schemas.vocabulary import CODEBOOK_SIZE, CODES_PER_IMAGE

Codes = NDArray[np.uint16]
"""(32,) uint16, indices into the SEED codebook, 0..8191, in causal order."""


class Role(StrEnum):
    """Who speaks a segment of a chat."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class TextSegment:
    """One run of text, as the source wrote it."""

    text: str
    role: Role | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImageSegment:
    """One image, or one frame of a video, as its codes.

    Raises:
        ValueError: if the codes are not 32 integers of 0..8191.
    """

    codes: Codes
    role: Role | None = None
    time_s: float | None = None
    """Videos only: time of the frame within its clip, in seconds."""

    def __post_init__(self) -> None:
        check_codes(self.codes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageSegment):
            return NotImplemented
        same_codes = np.array_equal(self.codes, other.codes)
        return same_codes and self.role == other.role and self.time_s == other.time_s


Segment = TextSegment | ImageSegment


@dataclass(frozen=True, slots=True)
class Document:
    """One row of a token shard."""

    key: str
    """Key of the sample in its source shard."""
    segments: tuple[Segment, ...]
    """In reading order."""
    metadata: str | None = None
    """What the source said about the sample: a JSON object, kept for filtering."""

    @property
    def images(self) -> list[ImageSegment]:
        return [segment for segment in self.segments if isinstance(segment, ImageSegment)]

    @property
    def texts(self) -> list[str]:
        return [segment.text for segment in self.segments if isinstance(segment, TextSegment)]


def check_codes(codes: NDArray[np.generic]) -> None:
    """Raise ValueError unless ``codes`` is (32,) uint16 with every value below 8192."""
    if codes.dtype != np.uint16 or codes.shape != (CODES_PER_IMAGE,):
        raise ValueError(f"codes must be uint16 ({CODES_PER_IMAGE},), got {codes.dtype} {codes.shape}")
    if int(codes.max()) >= CODEBOOK_SIZE:
        raise ValueError(f"code {int(codes.max())} is outside the codebook of {CODEBOOK_SIZE}")
