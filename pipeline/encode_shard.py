"""One source shard from reading to commit, without Ray.

    stream -> source (documents with raw images) -> decoding -> batches -> documents in order -> one commit

The source is read by the calling thread; decoding and the model run elsewhere, and images come back as
futures. A bounded number of images and documents is under way, so memory does not grow with the shard.
Documents leave in source order, whatever order their images were finished in.

Commit: the token shard is written beside its place, then the quarantine ledger is put in place, then the
token shard. The token shard's footer names the ledger by its hash, and the ledger's file name carries the
beginning of that hash, so that two attempts at one shard never touch each other's ledger: whichever token
shard stands in the end, its ledger stands beside it. A ledger that no token shard names counts for nothing.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline import fault_points
from pipeline.batching_encoder import BatchingEncoder, BatchInput, EncodedFrames, Frames
from pipeline.finish_document import OnBadImage, ShardCounter, finish_document, outcome
from pipeline.shard_task import TOKEN_SHARD_SUFFIX, ShardReport, ShardTask, ledger_name
from pipeline.source_identity import source_hash
from pipeline.sources.records import RawDocument, RawImage, RawVideo
from pipeline.storage import Folder, StagedFile
from schemas.document import TextSegment
from schemas.fingerprint import Fingerprint
from schemas.quarantine import QuarantineRecord
from schemas.token_shard import (
    QuarantineFile,
    TokenShardFooter,
    TokenShardWriter,
    read_footer,
)

ReadDocuments = Callable[[ShardTask], Iterator[RawDocument | QuarantineRecord]]
"""A source: everything in one source shard, in order."""
DecodeImage = Callable[[RawImage | RawVideo], "Future[Frames]"]
"""Starts decoding an image or video; the future fails with an error that has ``reason`` and ``detail``."""
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
    """Images of one shard between reading and codes; 0: the model's batches in flight, one that waits and one
    that is being decoded, so that neither side waits for the other."""
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
        with (
            self.folder.stage(task.name + TOKEN_SHARD_SUFFIX) as shard_file,
            self.folder.stage(task.name + ".quarantine") as ledger_file,
        ):
            footer = _ShardRun(self, task, shard_file, ledger_file, on_progress).run()
            fault_points.reach("after_write", task.name)
            check_written(shard_file.path, footer)
            num_bytes = shard_file.path.stat().st_size + ledger_file.path.stat().st_size
            self._commit(task, footer, shard_file, ledger_file)
        return ShardReport(
            name=task.name,
            source=task.source,
            counts=footer.counts,
            source_complete=footer.source_complete,
            source_bytes=task.source_bytes,
            output_bytes=num_bytes,
            seconds=time.monotonic() - begin,
        )

    def _commit(
        self, task: ShardTask, footer: TokenShardFooter, shard_file: StagedFile, ledger_file: StagedFile
    ) -> None:
        if footer.quarantine is not None:
            ledger_file.commit(ledger_name(task.name, footer.quarantine.sha256))
        fault_points.reach("after_ledger", task.name)
        shard_file.commit()
        fault_points.reach("after_commit", task.name)


def check_written(path: Path, footer: TokenShardFooter) -> None:
    """Read the footer back from the file that is about to be committed."""
    if read_footer(path) != footer:
        raise OSError(
            f"{path}: the footer that was read back differs from the one written: disk or memory fault"
        )


@dataclass
class _PendingDocument:
    """A document whose images are under way."""

    raw: RawDocument
    encoded: "list[Future[EncodedFrames]]"
    """One for each image or video, in order."""

    @property
    def is_done(self) -> bool:
        return all(future.done() for future in self.encoded)


class _ShardRun:
    """State of one attempt at one shard."""

    def __init__(
        self,
        tools: ShardEncoder,
        task: ShardTask,
        shard_file: StagedFile,
        ledger_file: StagedFile,
        on_progress: Callable[[], None],
    ) -> None:
        self._tools = tools
        self._task = task
        self._files = (shard_file, ledger_file)
        self._ledger = LedgerWriter(ledger_file.path)
        self._on_progress = on_progress
        self._counts = ShardCounter()
        self._pending: deque[_PendingDocument | QuarantineRecord] = deque()
        self._under_way = 0
        num_batches = tools.batching.batches_in_flight + 2
        self._max_under_way = tools.images_in_flight or num_batches * tools.batching.batch_size
        self._last_touch = time.monotonic()

    def run(self) -> TokenShardFooter:
        identity = source_hash(self._task.source, self._task.source_bytes)
        with (
            closing(self._ledger),
            TokenShardWriter(self._files[0].path) as writer,
            self._tools.batching.open_shard() as batches,
        ):
            for item in self._tools.read(self._task):
                self._moved()
                self._counts.came_in(item)
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
            footer = self._footer(identity)
            writer.close(footer)
        return footer

    def _start(self, raw: RawDocument, batches: BatchInput, writer: TokenShardWriter) -> None:
        """Send the images of a document on their way, no more than may be under way at once."""
        document = _PendingDocument(raw, [])
        for segment in raw.segments:
            if not isinstance(segment, TextSegment):
                while self._under_way >= self._max_under_way:
                    self._free_a_place(document, batches, writer)
                document.encoded.append(batches.submit(self._tools.decode(segment)))
                self._under_way += 1
        self._pending.append(document)

    def _free_a_place(self, current: _PendingDocument, batches: BatchInput, writer: TokenShardWriter) -> None:
        if self._pending:
            self._write_oldest(writer, batches)
            return
        # One document alone fills all places: wait for its own images, oldest first.
        oldest = next((future for future in current.encoded if not future.done()), None)
        if oldest is not None:
            self._wait(oldest, batches)
        self._under_way = sum(not future.done() for future in current.encoded)

    def _write_finished(self, writer: TokenShardWriter) -> None:
        while self._pending and (isinstance(self._pending[0], QuarantineRecord) or self._pending[0].is_done):
            self._write(self._pending.popleft(), writer)

    def _write_oldest(self, writer: TokenShardWriter, batches: BatchInput) -> None:
        oldest = self._pending.popleft()
        if isinstance(oldest, _PendingDocument):
            for future in oldest.encoded:
                self._wait(future, batches)
        self._write(oldest, writer)

    def _wait(self, future: "Future[EncodedFrames]", batches: BatchInput) -> None:
        while not batches.wait(future, timeout_s=1.0):
            self._check_cancelled()
        self._moved()

    def _write(self, item: _PendingDocument | QuarantineRecord, writer: TokenShardWriter) -> None:
        self._moved()
        if isinstance(item, QuarantineRecord):
            self._counts.refused_by_source(item)
            self._ledger.write(item)
            return
        self._under_way = max(0, self._under_way - len(item.encoded))
        outcomes = [outcome(future) for future in item.encoded]
        settings = self._tools.settings
        document, records = finish_document(item.raw, outcomes, self._task.source, settings.on_bad_image)
        self._counts.finished(outcomes, document, records)
        for record in records:
            self._ledger.write(record)
        if document is not None:
            writer.write(document)

    def _footer(self, identity: str | None) -> TokenShardFooter:
        settings = self._tools.settings
        return TokenShardFooter(
            kind=settings.kind,
            source=self._task.source,
            source_bytes=self._task.source_bytes,
            source_complete=not self._counts.is_damaged,
            fingerprint=settings.fingerprint,
            counts=self._counts.totals(),
            quarantine=self._ledger.file(),
            source_hash=identity,
        )

    def _check_cancelled(self) -> None:
        if self._tools.is_cancelled.is_set():
            raise ShardCancelledError(self._task.name)

    def _moved(self) -> None:
        """Say that the shard moves, and keep its files young, so that nobody takes them for left over."""
        self._check_cancelled()
        self._on_progress()
        now = time.monotonic()
        if now - self._last_touch > TOUCH_EVERY_S:
            for file in self._files:
                file.touch()
            self._last_touch = now


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
