"""Chats of a task: a tar shard, or a file of JSON lines or one JSON array, with its images in a folder."""

import io
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.shard_task import ShardTask
from pipeline.source_stream import open_source
from pipeline.sources.chats import ChatsConfig, read_chats
from pipeline.sources.decompress import TarDamageError, compression_of, decompressed
from pipeline.sources.json_array import begins_array, read_json_array
from pipeline.sources.json_lines import JSON_SUFFIXES, FolderImages, read_json_lines
from pipeline.sources.records import SourceItems
from pipeline.sources.tar_reader import TarReaderConfig
from pipeline.sources.tar_source import TarSource
from schemas.quarantine import QuarantineRecord, Unit

_HEAD_BYTES = 4096
"""Enough to tell an array from JSON lines."""


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
                head = plain.peek(_HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
                if head.startswith((b"{\n", b"{\r")):
                    raise ValueError(
                        f"{task.source}: an object over several lines; give one object a line, or an array"
                    )
                read = read_json_array if begins_array(head) else read_json_lines
                samples = read(plain, task.source, self.config.max_document_bytes)
                yield from read_chats(samples, task.source, self.config, FolderImages(self.images))
            except TarDamageError as damage:
                yield QuarantineRecord(task.source, "", Unit.SHARD, damage.reason, damage.detail)
