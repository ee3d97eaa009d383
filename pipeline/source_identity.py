"""What a source shard holds, in two small reads: tars of other content often have the same size.

A tar's size is a multiple of 512 bytes, as most programs write it of 10,240. Its first and last 64 KiB hold
names, dates and beginnings of members, so that two shards of other data hardly agree in them; what can go
unseen is a change in the middle that keeps every size. Dates and paths of shards do not count: a copy is the
same source.
"""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fsspec import AbstractFileSystem

from pipeline.source_stream import PERMANENT_ERRORS, SourceStreamConfig, filesystem_of, is_local

END_BYTES = 1 << 16
SOURCES_AT_A_TIME = 64
"""An object store answers each in tens of milliseconds."""
_UNKNOWN_SIZE_SCHEMES = ("http://", "https://")
"""Web servers: some send the whole file whatever part they are asked for."""


def source_hash(url: str, num_bytes: int | None) -> str | None:
    """SHA-256 of the first and the last 64 KiB in hexadecimal digits; None where the size is not known.

    Args:
        url: local path or fsspec URL.
        num_bytes: its size, as it was listed.

    Raises:
        OSError: it cannot be read.
    """
    if num_bytes is None or url.startswith(_UNKNOWN_SIZE_SCHEMES):
        return None
    end_begins = max(num_bytes - END_BYTES, min(END_BYTES, num_bytes))
    state = hashlib.sha256()
    if is_local(url):
        with open(url, "rb") as file:
            state.update(file.read(END_BYTES))
            file.seek(end_begins)
            state.update(file.read(END_BYTES))
        return state.hexdigest()
    filesystem, path = filesystem_of(url)
    for begin, end in ((0, min(END_BYTES, num_bytes)), (end_begins, num_bytes)):
        if begin < end:
            state.update(_part(filesystem, path, begin, end))
    return state.hexdigest()


def _part(filesystem: AbstractFileSystem, path: str, begin: int, end: int) -> bytes:
    """Bytes of a remote file; a store that fails is asked again, as `source_stream` does."""
    config = SourceStreamConfig()
    for attempt in range(config.max_retries):
        try:
            return bytes(filesystem.cat_file(path, start=begin, end=end))
        except PERMANENT_ERRORS:
            raise
        except Exception:  # stores raise what they like: botocore, aiohttp, OSError
            time.sleep(config.retry_delay_s * 2**attempt)
    return bytes(filesystem.cat_file(path, start=begin, end=end))


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What is known of a source shard without reading it."""

    num_bytes: int | None
    ends: str | None
    """Of `source_hash`."""

    def difference(self, now: "SourceIdentity") -> str | None:
        """How the source differs now; None where nothing that is known does."""
        if None not in (self.num_bytes, now.num_bytes) and self.num_bytes != now.num_bytes:
            return f"{self.num_bytes} bytes then, {now.num_bytes} now"
        if None not in (self.ends, now.ends) and self.ends != now.ends:
            return f"{now.num_bytes} bytes then and now, but other content"
        return None


def identities_now(sources: Iterable[tuple[str, int | None]]) -> list[SourceIdentity]:
    """Of many (URL, size) at once; the ends of what cannot be read now are not known."""
    with ThreadPoolExecutor(SOURCES_AT_A_TIME) as threads:
        return list(threads.map(lambda source: _identity(*source), sources))


def _identity(url: str, num_bytes: int | None) -> SourceIdentity:
    try:
        return SourceIdentity(num_bytes, source_hash(url, num_bytes))
    except Exception:  # stores raise what they like; whoever reads it says what is wrong
        return SourceIdentity(num_bytes, None)
