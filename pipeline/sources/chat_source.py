"""Chats of a task: a tar shard, or a JSON file (lines, an array, an object) with its images in a folder."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.shard_task import ShardTask
from pipeline.source_stream import open_source
from pipeline.sources.chats import CONTENT_FIELDS, ChatsConfig, read_chats
from pipeline.sources.decompress import TarDamageError, compression_of, decompressed
from pipeline.sources.json_array import begins_array, length_before_array, read_json_array
from pipeline.sources.json_lines import JSON_SUFFIXES, FolderImages, read_json_lines
from pipeline.sources.metadata import parse_metadata
from pipeline.sources.records import SourceItems
from pipeline.sources.tar_reader import TarReaderConfig, TarSample
from pipeline.sources.tar_source import TarSource
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit

_HEAD_BYTES = 4096
"""Enough to tell an array from JSON lines."""
_BLANKS = b"\xef\xbb\xbf \t\r\n"


@dataclass(frozen=True, kw_only=True)
class ChatSource:
    """A function of one task that travels to the workers."""

    config: ChatsConfig = field(default_factory=ChatsConfig)
    images: Path | None = None
    """Folder in which JSON files find the images that they name."""

    def __call__(self, task: ShardTask) -> SourceItems:
        """Documents and records of one shard. Raises OSError, ValueError if it cannot be read."""
        if not task.source.lower().endswith(JSON_SUFFIXES):
            return TarSource(documents=read_chats, config=self.config)(task)
        return self._read_json(task)

    def _read_json(self, task: ShardTask) -> SourceItems:
        with open_source(task.source) as stream:
            assert isinstance(stream, io.BufferedReader)
            plain = stream
            if compression := compression_of(stream.peek(4)[:4]):
                plain = decompressed(stream, compression, b"", TarReaderConfig.max_decompressed_bytes)
            try:
                samples = read_json(plain, task.source, self.config.max_document_bytes)
                yield from read_chats(samples, task.source, self.config, FolderImages(self.images))
            except TarDamageError as damage:
                yield QuarantineRecord(task.source, "", Unit.SHARD, damage.reason, damage.detail)


def read_json(
    stream: io.BufferedReader, source: str, max_bytes: int
) -> Iterator[TarSample | QuarantineRecord]:
    """Samples of a JSON file of any of the forms, which is told by its beginning.

    An array, also one that an object wraps (``{"data": [...]}``) whose line is no chat itself: its elements.
    Else an object over several lines: itself. Else JSON lines.
    """
    buffered = stream.peek(_HEAD_BYTES)  # often more
    beginning = buffered.lstrip(_BLANKS)
    head = beginning[:_HEAD_BYTES]
    if begins_array(head):
        return read_json_array(stream, source, max_bytes)
    if (length := length_before_array(head)) and not _is_chat(beginning.partition(b"\n")[0]):
        stream.read(len(buffered) - len(beginning) + length)
        return read_json_array(stream, source, max_bytes, is_wrapped=True)
    if head.startswith((b"{\n", b"{\r")):
        return _whole(stream, source, max_bytes)
    return read_json_lines(stream, source, max_bytes)


def _is_chat(line: bytes) -> bool:
    """Whether it is an object with fields of a chat: a list among them, of annotations say, wraps nothing."""
    try:
        return not CONTENT_FIELDS.isdisjoint(parse_metadata(line, len(line)))
    except RefusedError:
        return False


def _whole(stream: io.BufferedReader, source: str, max_bytes: int) -> Iterator[TarSample | QuarantineRecord]:
    key, data = f"{0:09d}", stream.read(max_bytes + 1)
    if len(data) <= max_bytes:
        yield TarSample(key, {"json": data.lstrip(_BLANKS)}, 0)
    else:
        detail = f"an object of more than {max_bytes} bytes (--chats.max-document-bytes)"
        yield QuarantineRecord(source, key, Unit.SAMPLE, Reason.METADATA_TOO_LARGE, detail, len(data))
