"""The quarantine ledger: every sample, image, tar member or shard that was refused, with a reason.

Written as JSON lines beside the token shard, in the same commit (see ``token_shard``).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self


class Unit(StrEnum):
    """What was refused."""

    SAMPLE = "sample"
    """A whole sample: it is not among the documents."""
    IMAGE = "image"
    """One image of a document that was itself written."""
    MEMBER = "member"
    """A tar member that belongs to no sample, or was ignored inside one."""
    SHARD = "shard"
    """The source shard itself is damaged; what was sound was kept."""


class Reason(StrEnum):
    """Why it was refused. A closed list: reports and alarms may rely on it."""

    IMAGE_MISSING = "image_missing"
    IMAGE_EMPTY = "image_empty"
    IMAGE_NOT_AN_IMAGE = "image_not_an_image"
    IMAGE_UNSUPPORTED_FORMAT = "image_unsupported_format"
    IMAGE_DECODE_ERROR = "image_decode_error"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_BAD_ASPECT_RATIO = "image_bad_aspect_ratio"

    VIDEO_MISSING = "video_missing"
    VIDEO_EMPTY = "video_empty"
    VIDEO_DECODE_ERROR = "video_decode_error"
    VIDEO_NO_VIDEO_STREAM = "video_no_video_stream"
    VIDEO_TOO_FEW_FRAMES = "video_too_few_frames"
    VIDEO_TOO_LARGE = "video_too_large"

    DECODER_CRASHED = "decoder_crashed"
    """The decoder process died on it (segmentation fault, out of memory)."""
    DECODE_TIMEOUT = "decode_timeout"
    """The decoder did not finish within the time limit."""

    CAPTION_MISSING = "caption_missing"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_TOO_LONG = "caption_too_long"
    CAPTION_BAD_ENCODING = "caption_bad_encoding"
    METADATA_MISSING = "metadata_missing"
    METADATA_INVALID_JSON = "metadata_invalid_json"
    METADATA_TOO_LARGE = "metadata_too_large"

    DOC_SCHEMA_ERROR = "doc_schema_error"
    DOC_LENGTH_MISMATCH = "doc_length_mismatch"
    DOC_NODE_BOTH_SET = "doc_node_both_set"
    DOC_NODE_BOTH_NULL = "doc_node_both_null"
    DOC_IMAGE_MISSING = "doc_image_missing"
    DOC_NO_IMAGES = "doc_no_images"
    DOC_EMPTY = "doc_empty"
    DOCUMENT_DROPPED = "document_dropped"
    """A sound image whose document was dropped for another reason."""

    DUPLICATE_KEY = "duplicate_key"
    DUPLICATE_MEMBER = "duplicate_member"
    UNSAFE_MEMBER_NAME = "unsafe_member_name"
    NON_REGULAR_MEMBER = "non_regular_member"
    MEMBER_TOO_LARGE = "member_too_large"
    MEMBER_IGNORED = "member_ignored"

    TAR_TRUNCATED = "tar_truncated"
    TAR_CORRUPT = "tar_corrupt"
    TAR_EMPTY = "tar_empty"
    TAR_ZERO_LENGTH = "tar_zero_length"
    TAR_CONCATENATED = "tar_concatenated"
    TAR_GZIP_MISLABELLED = "tar_gzip_mislabelled"


class RefusedError(ValueError):
    """A picture, a clip or another part of a sample that cannot be used.

    Attributes:
        reason: why, from the closed list.
        detail: one line for a human.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True)
class QuarantineRecord:
    """One line of the ledger."""

    source: str
    """Source shard as it was named on input: the ``source`` of the token shard's footer."""
    key: str
    """Key of the sample; the member name for ``member``, empty for ``shard``."""
    unit: Unit
    reason: Reason
    detail: str = ""
    """One line for a human: what exactly, and where (byte offset, image position)."""
    num_bytes: int = 0
    """Size of what was refused, where known."""

    def to_json(self) -> str:
        """One line of the ledger: ASCII only, so that any byte of a key survives."""
        return json.dumps(asdict(self), ensure_ascii=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Self:
        fields = json.loads(line)
        return cls(**fields | {"unit": Unit(fields["unit"]), "reason": Reason(fields["reason"])})


def parse_records(data: bytes) -> Iterator[QuarantineRecord]:
    """Records of a ledger file.

    Raises:
        ValueError: if a line is no such record.
    """
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            yield QuarantineRecord.from_json(line.decode("ascii"))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"quarantine ledger, line {number}: {error}") from error
