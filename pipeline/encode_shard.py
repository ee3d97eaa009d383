"""One source shard from reading to commit, without Ray.

    stream -> source (documents with raw images) -> decoding -> batches -> documents in order -> one commit

The source is read by the calling thread; decoding and the model run elsewhere, and images come back as
futures. A bounded number of images and documents is under way, so memory does not grow with the shard.
Documents leave in source order, whatever order their images were finished in.

Commit: the token shard is written beside its place, then the quarantine ledger is put in place, then the
token shard. The token shard's footer names the ledger by its hash; a token shard that exists is complete,
and a ledger without one is left over from a killed attempt and counts for nothing.
"""

import hashlib
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from pipeline import fault_points
from pipeline.batching_encoder import BatchingEncoder, BatchInput, EncoderError
from pipeline.shard_task import LEDGER_SUFFIX, TOKEN_SHARD_SUFFIX, ShardReport, ShardTask
from pipeline.sources.records import RawDocument, RawImage
from pipeline.storage import Folder
from schemas.document import Document, ImageSegment, TextSegment
from schemas.fingerprint import Fingerprint
from schemas.quarantine import QuarantineRecord, Reason, Unit
from schemas.token_shard import QuarantineFile, ShardCounts, TokenShardFooter, TokenShardWriter, read_footer

logger = logging.getLogger(__name__)

ReadDocuments = Callable[[ShardTask], Iterator[RawDocument | QuarantineRecord]]
"""A source: everything in one source shard, in order."""
DecodeImage = Callable[[RawImage], "Future[np.ndarray]"]
"""Starts decoding; gives (224, 224, 3) uint8 or an error with ``reason`` and ``detail``."""
OnBadImage = Literal["drop-document", "drop-image"]

DAMAGE = frozenset({Reason.TAR_TRUNCATED, Reason.TAR_CORRUPT, Reason.TAR_ZERO_LENGTH})
"""Reasons for which a part of the source shard is not among the documents."""
TOUCH_EVERY_S = 60.0


class ShardCancelledError(RuntimeError):
    """The run is ending; nothing of this shard was committed."""


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What decides the rows of a token shard besides the tokenizer and the source."""

    kind: str
    """pairs, videos, interleaved or chats."""
    fingerprint: Fingerprint
    on_bad_image: OnBadImage = "drop-document"
    """What one bad image costs: its document, or only itself."""


@dataclass(frozen=True)
class ShardEncoder:
    """What the shards in flight of one process share. ``encode`` may be called by several threads."""

    read: ReadDocuments
    decode: DecodeImage
    batching: BatchingEncoder
    folder: Folder
    settings: ShardSettings
    images_in_flight: int = 0
    """Images of one shard that are being decoded or wait for the model; 0: twice the batch."""
    documents_in_flight: int = 4096
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def encode(self, task: ShardTask, on_progress: Callable[[], None] = lambda: None) -> ShardReport:
        """Tokenize one source shard and commit it.

        Args:
            task: what to read, and the name to write.
            on_progress: called for each thing read or finished, to show that the shard moves.

        Raises:
            ShardCancelledError: if the run is ending.
            EncoderError: if the model failed.
            OSError: if the source cannot be read or the output not written; nothing is visible then.
        """
        begin = time.monotonic()
        fault_points.reach("start", task.name)
        shard_name, ledger_name = task.name + TOKEN_SHARD_SUFFIX, task.name + LEDGER_SUFFIX
        with self.folder.staged(shard_name) as shard_path:
            with self.folder.staged(ledger_name) as ledger_path:
                shard = _Shard(self, task, shard_path, ledger_path, on_progress)
                footer = shard.run()
                fault_points.reach("after_write", task.name)
                check_written(shard_path, footer)
                num_bytes = shard_path.stat().st_size + ledger_path.stat().st_size
                # A token shard of an earlier run must not stand beside the ledger of this one.
                self.folder.remove(shard_name)
                fault_points.reach("before_ledger", task.name)
            if footer.quarantine is None:
                self.folder.remove(ledger_name)
            fault_points.reach("after_ledger", task.name)
        fault_points.reach("after_commit", task.name)
        return ShardReport(
            name=task.name,
            source=task.source,
            counts=footer.counts,
            source_complete=footer.source_complete,
            source_bytes=task.source_bytes,
            output_bytes=num_bytes,
            seconds=time.monotonic() - begin,
        )


def check_written(path: Path, footer: TokenShardFooter) -> None:
    """Read the footer back from the file that is about to be committed."""
    if read_footer(path) != footer:
        raise OSError(f"{path}: the footer that was read back differs from the one written: disk or memory fault")


@dataclass
class _PendingDocument:
    """A document whose images are under way."""

    raw: RawDocument
    codes: "list[Future[np.ndarray]]"
    """One for each image, in order."""

    @property
    def is_done(self) -> bool:
        return all(future.done() for future in self.codes)


class _Shard:
    """State of one attempt at one shard."""

    def __init__(
        self,
        tools: ShardEncoder,
        task: ShardTask,
        shard_path: Path,
        ledger_path: Path,
        on_progress: Callable[[], None],
    ) -> None:
        self._tools = tools
        self._task = task
        self._shard_path = shard_path
        self._ledger = LedgerWriter(ledger_path)
        self._on_progress = on_progress
        self._counts = ShardCounter()
        self._pending: deque[_PendingDocument | QuarantineRecord] = deque()
        self._images_under_way = 0
        self._max_images = tools.images_in_flight or 2 * tools.batching.batch_size
        self._last_touch = time.monotonic()

    def run(self) -> TokenShardFooter:
        with (
            closing(self._ledger),
            TokenShardWriter(self._shard_path) as writer,
            self._tools.batching.open_shard() as batches,
        ):
            for item in self._tools.read(self._task):
                self._check_alive()
                if isinstance(item, QuarantineRecord):
                    self._pending.append(item)
                else:
                    self._start(item, batches, writer)
                fault_points.reach("reading", self._task.name)
                self._write_finished(writer)
                while len(self._pending) >= self._tools.documents_in_flight:
                    self._write_oldest(writer, batches)
            while self._pending:
                self._write_oldest(writer, batches)
            footer = self._footer()
            writer.close(footer)
        return footer

    def _start(self, raw: RawDocument, batches: BatchInput, writer: TokenShardWriter) -> None:
        """Send the images of a document on their way, no more than fit under way at once."""
        document = _PendingDocument(raw, [])
        for segment in raw.segments:
            if isinstance(segment, RawImage):
                while self._images_under_way >= self._max_images:
                    self._free_a_place(document, batches, writer)
                document.codes.append(batches.submit(self._tools.decode(segment)))
                self._images_under_way += 1
        self._pending.append(document)

    def _free_a_place(self, current: _PendingDocument, batches: BatchInput, writer: TokenShardWriter) -> None:
        if self._pending:
            self._write_oldest(writer, batches)
            return
        # One document alone fills all places: wait for its own images, oldest first.
        for future in current.codes:
            if not future.done():
                self._wait(future, batches)
                break
        self._images_under_way = sum(not future.done() for future in current.codes)

    def _write_finished(self, writer: TokenShardWriter) -> None:
        while self._pending and (isinstance(self._pending[0], QuarantineRecord) or self._pending[0].is_done):
            self._write(self._pending.popleft(), writer)

    def _write_oldest(self, writer: TokenShardWriter, batches: BatchInput) -> None:
        oldest = self._pending.popleft()
        if isinstance(oldest, _PendingDocument):
            for future in oldest.codes:
                self._wait(future, batches)
        self._write(oldest, writer)

    def _wait(self, future: "Future[np.ndarray]", batches: BatchInput) -> None:
        while not batches.wait(future, timeout_s=1.0):
            self._check_alive(has_moved=False)

    def _write(self, item: _PendingDocument | QuarantineRecord, writer: TokenShardWriter) -> None:
        self._on_progress()
        if isinstance(item, QuarantineRecord):
            self._counts.refused_by_source(item)
            self._ledger.write(item)
            return
        self._images_under_way = max(0, self._images_under_way - len(item.codes))
        errors = [_failure(future) for future in item.codes]
        document, records = finish_document(
            item.raw, [None if error else future.result() for error, future in zip(errors, item.codes, strict=True)],
            errors, self._task.source, self._tools.settings.on_bad_image,
        )  # fmt: skip
        self._counts.finished(len(item.codes), document, records, errors)
        for record in records:
            self._ledger.write(record)
        if document is not None:
            writer.write(document)

    def _footer(self) -> TokenShardFooter:
        settings = self._tools.settings
        return TokenShardFooter(
            kind=settings.kind,
            source=self._task.source,
            source_bytes=self._task.source_bytes,
            source_complete=not self._counts.is_damaged,
            fingerprint=settings.fingerprint,
            counts=self._counts.totals(),
            quarantine=self._ledger.file(),
        )

    def _check_alive(self, has_moved: bool = True) -> None:
        """Stop if the run ends; keep the temporary files young, so that nobody takes them for left over."""
        if self._tools.is_cancelled.is_set():
            raise ShardCancelledError(self._task.name)
        if has_moved:
            self._on_progress()
        now = time.monotonic()
        if now - self._last_touch > TOUCH_EVERY_S:
            os.utime(self._shard_path)
            os.utime(self._ledger.path)
            self._last_touch = now


def _failure(future: "Future[np.ndarray]") -> Any:
    """What is wrong with an image, as an error with ``reason`` and ``detail``; other errors are raised."""
    error = future.exception()
    if error is not None and not isinstance(getattr(error, "reason", None), Reason):
        raise error
    return error


def finish_document(
    raw: RawDocument, codes: list[np.ndarray | None], errors: list[Any], source: str, on_bad_image: OnBadImage
) -> tuple[Document | None, list[QuarantineRecord]]:
    """The document with its codes, or None if it is dropped, and the records for what is missing.

    Args:
        raw: the document as it was read.
        codes: for each image, (32,) uint16, or None where it failed.
        errors: for each image, what failed (with ``reason`` and ``detail``), or None.
        source: source shard.
        on_bad_image: whether one bad image costs the document. A document that had images and keeps none is
            dropped in any case.
    """
    bad = [(position, error) for position, error in enumerate(errors) if error is not None]
    if bad and (on_bad_image == "drop-document" or len(bad) == len(errors)):
        position, error = bad[0]
        detail = error.detail if len(errors) == 1 else f"image {position} of {len(errors)}: {error.detail}"
        images = [segment for segment in raw.segments if isinstance(segment, RawImage)]
        size = sum(len(image.data) for image in images)
        return None, [QuarantineRecord(source, raw.key, Unit.SAMPLE, error.reason, detail, size)]
    segments: list[TextSegment | ImageSegment] = []
    records = []
    remaining = iter(zip(codes, errors, strict=True))
    for position, segment in enumerate(raw.segments):
        if isinstance(segment, TextSegment):
            segments.append(segment)
            continue
        image_codes, error = next(remaining)
        if image_codes is not None:
            segments.append(ImageSegment(image_codes, segment.role, segment.time_s))
        else:
            detail = f"segment {position}: {error.detail}"
            record = QuarantineRecord(source, raw.key, Unit.IMAGE, error.reason, detail, len(segment.data))
            records.append(record)
    return Document(raw.key, tuple(segments), raw.metadata), records


class ShardCounter:
    """Counts what comes in and what becomes of it, independently of each other."""

    def __init__(self) -> None:
        self.is_damaged = False
        self._read = Counter[str]()
        self._written = Counter[str]()
        self._quarantined = Counter[str]()
        self._dropped = Counter[str]()
        self._notes = Counter[str]()

    def refused_by_source(self, record: QuarantineRecord) -> None:
        if record.unit is Unit.SAMPLE:
            self._read["samples"] += 1
            self._quarantined[record.reason] += 1
        elif record.unit is Unit.IMAGE:
            self._read["images"] += 1
            self._dropped[record.reason] += 1
        else:
            self._notes[record.reason] += 1
            self.is_damaged |= record.unit is Unit.SHARD and record.reason in DAMAGE

    def finished(
        self, num_images: int, document: Document | None, records: list[QuarantineRecord], errors: list[Any]
    ) -> None:
        self._read["samples"] += 1
        self._read["images"] += num_images
        self._dropped.update(error.reason for error in errors if error is not None)
        if document is not None:
            self._written["documents"] += 1
            self._written["images"] += len(document.images)
            return
        self._quarantined.update(record.reason for record in records if record.unit is Unit.SAMPLE)
        if sound := errors.count(None):
            self._dropped[Reason.DOCUMENT_DROPPED] += sound

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


class LedgerWriter:
    """Streams quarantine records into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._num_records = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")

    def write(self, record: QuarantineRecord) -> None:
        line = record.to_json().encode("ascii") + b"\n"
        self._file.write(line)
        self._hash.update(line)
        self._num_records += 1

    def file(self) -> QuarantineFile | None:
        """What the footer says of the ledger; None without records."""
        return QuarantineFile(self._num_records, self._hash.hexdigest()) if self._num_records else None

    def close(self) -> None:
        self._file.close()


__all__ = ["EncoderError", "ShardCancelledError", "ShardEncoder", "ShardSettings"]
