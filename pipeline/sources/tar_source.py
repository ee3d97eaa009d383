"""A tar shard as documents: opens a task's shard and reads it through a source function."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.inputs import SourceShard
from pipeline.read_shard import read_shard
from pipeline.shard_task import ShardTask
from pipeline.source_stream import SourceStreamConfig
from pipeline.sources.other_files import remedy_for
from pipeline.sources.records import SourceItems
from pipeline.sources.tar_reader import TarReaderConfig, TarSample
from schemas.quarantine import QuarantineRecord

ReadSamples = Callable[[Iterable[TarSample | QuarantineRecord], str, Any], SourceItems]
"""A source as `records` defines it: ``(samples, source shard as named on input, config)``."""


@dataclass(frozen=True, kw_only=True)
class TarSource:
    """A function of one task that travels to the workers."""

    documents: ReadSamples
    config: Any
    tar: TarReaderConfig = field(default_factory=TarReaderConfig)
    stream: SourceStreamConfig = field(default_factory=SourceStreamConfig)

    def __call__(self, task: ShardTask) -> SourceItems:
        """Documents and records of one shard. Raises OSError, ValueError if it cannot be read."""
        shard = SourceShard(task.source, task.name, task.source_bytes)
        return self.documents(read_shard(shard, tar=self.tar, stream=self.stream), task.source, self.config)


def check_are_tars(shards: Sequence[SourceShard]) -> None:
    """Refuse files whose name says that they are something else.

    Read as tars they would be damaged shards without documents, which a later run takes for done.

    Raises:
        ValueError: naming the file, and what reads it.
    """
    for shard in shards:
        if remedy := remedy_for(shard.url):
            raise ValueError(f"--input {shard.url}: no tar shard; {remedy}")
