"""Samples of one source shard, from its URL."""

from collections.abc import Iterator

from pipeline.inputs import SourceShard
from pipeline.source_stream import SourceStreamConfig, open_source
from pipeline.sources.tar_reader import TarReaderConfig, TarSample, read_samples
from schemas.quarantine import QuarantineRecord, Reason, Unit


def read_shard(
    shard: SourceShard,
    *,
    tar: TarReaderConfig | None = None,
    stream: SourceStreamConfig | None = None,
) -> Iterator[TarSample | QuarantineRecord]:
    """Open a shard and read its samples; see `read_samples`.

    A directory that is called ``x.tar`` is a damaged shard like any other, because no retry can mend it.

    Raises:
        OSError, ValueError: when the shard cannot be read (missing, refused, stalled), naming its URL.
    """
    try:
        with open_source(shard.url, stream) as opened:
            yield from read_samples(opened, shard.url, config=tar)
    except IsADirectoryError:
        yield QuarantineRecord(shard.url, "", Unit.SHARD, Reason.TAR_CORRUPT, "it is a directory")
