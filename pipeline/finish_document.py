"""Puts codes back into their document, and counts what became of everything.

Samples in = documents written + samples quarantined, and the same for images. Samples are counted apart,
what came in when it came and what went out when it went, so that the check at commit means something. How
many images came in is known only when a document is done: a video's frames are made by decoding.
"""

import json
from collections import Counter
from concurrent.futures import Future
from typing import Literal

from pipeline.batching_encoder import EncodedFrames
from pipeline.sources.metadata import ALL_FIELDS, dump_fields
from pipeline.sources.records import RawDocument, RawVideo
from schemas.document import Document, ImageSegment, TextSegment
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit
from schemas.token_shard import ShardCounts

OnBadImage = Literal["drop-document", "drop-image"]

DAMAGE = frozenset({Reason.TAR_TRUNCATED, Reason.TAR_CORRUPT, Reason.TAR_ZERO_LENGTH})
"""Reasons for which a part of the source shard is not among the documents."""


Outcome = EncodedFrames | RefusedError
"""What became of an image or video."""


def outcome(future: "Future[EncodedFrames]") -> Outcome:
    """What became of an image; errors that say nothing about the image are raised."""
    try:
        return future.result()
    except RefusedError as refusal:
        return refusal


def finish_document(
    raw: RawDocument, outcomes: list[Outcome], source: str, on_bad_image: OnBadImage
) -> tuple[Document | None, list[QuarantineRecord]]:
    """The document with its codes, or None if it is dropped, and the records for what is missing.

    Args:
        raw: the document as it was read.
        outcomes: one for each image or video, in order.
        source: the shard as named on input, for the records.
        on_bad_image: what one bad image costs. A document that had images and keeps none is dropped anyhow.
    """
    refused = [(place, item) for place, item in enumerate(outcomes) if isinstance(item, RefusedError)]
    if refused and (on_bad_image == "drop-document" or len(refused) == len(outcomes)):
        return None, [_drop(raw, *refused[0], len(outcomes), source)]
    segments: list[TextSegment | ImageSegment] = []
    records = []
    remaining = iter(outcomes)
    for position, segment in enumerate(raw.segments):
        if isinstance(segment, TextSegment):
            segments.append(segment)
            continue
        item = next(remaining)
        if isinstance(item, RefusedError):
            detail = f"segment {position}: {item.detail}"
            size = len(segment.data)
            records.append(QuarantineRecord(source, raw.key, Unit.IMAGE, item.reason, detail, size))
            continue
        time_s = None if isinstance(segment, RawVideo) else segment.time_s
        times = item.times_s or (time_s,) * len(item.codes)
        segments += [
            ImageSegment(codes, segment.role, time_s) for codes, time_s in zip(item.codes, times, strict=True)
        ]
    return Document(raw.key, tuple(segments), _metadata(raw, outcomes)), records


def _metadata(raw: RawDocument, outcomes: list[Outcome]) -> str | None:
    """The metadata of the source; of a video also what decoded it: decoders differ by a level or two."""
    encoded = [item for item in outcomes if isinstance(item, EncodedFrames)]
    decoders = sorted({item.decoder for item in encoded if item.decoder})
    if not decoders:
        return raw.metadata
    return dump_fields(json.loads(raw.metadata or "{}") | {"decoder": ", ".join(decoders)}, [ALL_FIELDS])


def _drop(
    raw: RawDocument, place: int, refusal: RefusedError, num_images: int, source: str
) -> QuarantineRecord:
    detail = refusal.detail if num_images == 1 else f"image {place} of {num_images}: {refusal.detail}"
    return QuarantineRecord(source, raw.key, Unit.SAMPLE, refusal.reason, detail, raw.num_bytes)


class ShardCounter:
    """Counts what comes in and what becomes of it, independently of each other."""

    def __init__(self) -> None:
        self.is_damaged = False
        self._read = Counter[str]()
        self._written = Counter[str]()
        self._quarantined = Counter[str]()
        self._dropped = Counter[str]()
        self._notes = Counter[str]()

    def came_in(self, item: RawDocument | QuarantineRecord) -> None:
        """The source gave it; what becomes of it is counted later, or lost."""
        self._read["samples"] += isinstance(item, RawDocument) or item.unit is Unit.SAMPLE

    def refused_by_source(self, record: QuarantineRecord) -> None:
        if record.unit is Unit.SAMPLE:
            self._quarantined[record.reason] += 1
        elif record.unit is Unit.IMAGE:
            self._read["images"] += 1
            self._dropped[record.reason] += 1
        else:
            self._notes[record.reason] += 1
            self.is_damaged |= record.unit is Unit.SHARD and record.reason in DAMAGE

    def finished(
        self, outcomes: list[Outcome], document: Document | None, records: list[QuarantineRecord]
    ) -> None:
        num_sound = sum(len(item.codes) for item in outcomes if isinstance(item, EncodedFrames))
        reasons = [item.reason for item in outcomes if isinstance(item, RefusedError)]
        self._read["images"] += num_sound + len(reasons)
        self._dropped.update(reasons)
        if document is not None:
            self._written["documents"] += 1
            self._written["images"] += len(document.images)
            return
        self._quarantined.update(record.reason for record in records if record.unit is Unit.SAMPLE)
        if num_sound:
            self._dropped[Reason.DOCUMENT_DROPPED] += num_sound

    def totals(self) -> ShardCounts:
        return ShardCounts(
            samples_read=self._read["samples"],
            documents_written=self._written["documents"],
            samples_quarantined=_plain(self._quarantined),
            images_read=self._read["images"],
            images_written=self._written["images"],
            images_dropped=_plain(self._dropped),
            notes=_plain(self._notes),
        )


def _plain(counter: Counter[str]) -> dict[str, int]:
    return {str(reason): counter[reason] for reason in sorted(counter)}
