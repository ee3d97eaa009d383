"""Chats of a task: a tar shard, or a file of JSON lines with its images in a folder."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.shard_task import ShardTask
from pipeline.source_stream import open_source
from pipeline.sources.chats import ChatsConfig, read_chats
from pipeline.sources.decompress import TarDamageError, compression_of, decompressed
from pipeline.sources.json_lines import JSON_LINES_SUFFIXES, LineImages, read_json_lines
from pipeline.sources.records import SourceItems
from pipeline.sources.tar_reader import TarReaderConfig
from pipeline.sources.tar_source import TarSource
from schemas.quarantine import QuarantineRecord, Unit


@dataclass(frozen=True, kw_only=True)
class ChatSource:
    """A function of one task that travels to the workers."""

    config: ChatsConfig = field(default_factory=ChatsConfig)
    images: Path | None = None
    """Folder in which JSON lines find the images that they name."""

    def __call__(self, task: ShardTask) -> SourceItems:
        """Documents and records of one shard. Raises OSError, ValueError if it cannot be read."""
        if not task.source.lower().endswith(JSON_LINES_SUFFIXES):
            return TarSource(documents=read_chats, config=self.config)(task)
        return self._read_lines(task)

    def _read_lines(self, task: ShardTask) -> SourceItems:
        with open_source(task.source) as stream:
            lines = stream
            if compression := compression_of(stream.peek(4)[:4]):
                lines = decompressed(stream, compression, b"", TarReaderConfig.max_decompressed_bytes)
            samples = read_json_lines(lines, task.source, self.config.max_document_bytes)
            try:
                yield from read_chats(samples, task.source, self.config, LineImages(self.images))
            except TarDamageError as damage:
                yield QuarantineRecord(task.source, "", Unit.SHARD, damage.reason, damage.detail)
