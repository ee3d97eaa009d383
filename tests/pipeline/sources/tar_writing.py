"""Small tars for the tests, written with the standard library's tarfile as the independent reference."""

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from pipeline.finish_document import DAMAGE
from schemas.quarantine import QuarantineRecord, Unit

HOSTILE = Path(__file__).parents[2] / "data" / "hostile"


def tar_bytes(
    members: Iterable[tuple[str, bytes]],
    tar_format: int = tarfile.PAX_FORMAT,
    pax_headers: dict | None = None,
) -> bytes:
    """A whole tar of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format, pax_headers=pax_headers) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pair_members(num_samples: int, image_bytes: int = 700) -> list[tuple[str, bytes]]:
    """Members of pairs 000, 001, ...: every byte tells its sample."""
    members: list[tuple[str, bytes]] = []
    for index in range(num_samples):
        members.append((f"{index:03d}.jpg", bytes([index]) * image_bytes))
        members.append((f"{index:03d}.json", b'{"url":"u%d"}' % index))
        members.append((f"{index:03d}.txt", b"caption %d" % index))
    return members


def hostile_shard(name: str) -> bytes:
    """One of the shards in tests/data/hostile."""
    return gzip.decompress((HOSTILE / "tars" / f"{name}.gz").read_bytes())


def is_complete(records: list[QuarantineRecord]) -> bool:
    """Whether nothing of the shard is hidden, as the pipeline tells it from its records."""
    return not any(record.unit is Unit.SHARD and record.reason in DAMAGE for record in records)
