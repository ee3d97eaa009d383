"""Samples one by one: what every source over tar samples does around the reading of one."""

from collections.abc import Callable, Iterable
from typing import Any

from pipeline.sources.metadata import parse_metadata
from pipeline.sources.records import SourceItems
from pipeline.sources.tar_reader import TarSample
from schemas.quarantine import QuarantineRecord, Reason, RefusedError, Unit


def read_each(
    samples: Iterable[TarSample | QuarantineRecord], source: str, read: Callable[[TarSample], SourceItems]
) -> SourceItems:
    """What ``read`` gives for each sample, in order; a ``sample`` record where it refuses one.

    Args:
        samples: of one shard; records among them are passed on.
        source: the shard as named on input, for the records.
        read: the document of a sample and records of other units; raises RefusedError instead of the
            document.
    """
    for sample in samples:
        if isinstance(sample, QuarantineRecord):
            yield sample
            continue
        try:
            yield from read(sample)
        except RefusedError as refusal:
            yield QuarantineRecord(
                source, sample.key, Unit.SAMPLE, refusal.reason, refusal.detail, sample.num_bytes
            )


def parse_json_member(sample: TarSample, max_bytes: int, section: str) -> dict[str, Any]:
    """The object in the ``.json`` of a sample that cannot do without.

    Args:
        sample: from a tar, or a line or element of a JSON file.
        max_bytes: the limit.
        section: under which its flag stands, for the detail of a refusal.

    Raises:
        RefusedError: ``metadata_missing`` if there is none, and what ``parse_metadata`` raises.
    """
    data = sample.members.get("json")
    if data is None:
        raise RefusedError(Reason.METADATA_MISSING, f"no .json; members: .{', .'.join(sample.members)}"[:200])
    return parse_metadata(data, max_bytes, f"--{section}.max-document-bytes")
