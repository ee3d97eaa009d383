"""Chats of a task: a tar shard, or a JSON file (lines, an array, an object) with its images in a folder."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.shard_task import ShardTask
from pipeline.source_stream import open_source
from pipeline.sources.chats import ChatsConfig, read_chats
from pipeline.sources.decompress import TarDamageError, compression_of, decompressed
from pipeline.sources.json_array import begins_array, length_before_array, read_json_array
from pipeline.sources.json_lines import JSON_SUFFIXES, FolderImages, read_json_lines
from pipeline.sources.records import SourceItems
from pipeline.sources.tar_reader import TarReaderConfig, TarSample
from pipeline.sources.tar_source import TarSource
from schemas.quarantine import QuarantineRecord, Reason, Unit

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

    An array, also one that an object wraps (``{"data": [...]}``): its elements. Else an object over several
    lines: itself. Else JSON lines.
    """
    beginning = stream.peek(_HEAD_BYTES)
    head = beginning.lstrip(_BLANKS)
    if begins_array(head):
        return read_json_array(stream, source, max_bytes)
    if length := length_before_array(head):
        stream.read(len(beginning) - len(head) + length)
        return read_json_array(stream, source, max_bytes, is_wrapped=True)
    if head.startswith((b"{\n", b"{\r")):
        return _whole(stream, source, max_bytes)
    return read_json_lines(stream, source, max_bytes)


def _whole(stream: io.BufferedReader, source: str, max_bytes: int) -> Iterator[TarSample | QuarantineRecord]:
    key, data = f"{0:09d}", stream.read(max_bytes + 1)
    if len(data) <= max_bytes:
        yield TarSample(key, {"json": data.lstrip(_BLANKS)}, 0)
    else:
        detail = f"an object of more than {max_bytes} bytes (max_document_bytes)"
        yield QuarantineRecord(source, key, Unit.SAMPLE, Reason.METADATA_TOO_LARGE, detail, len(data))
