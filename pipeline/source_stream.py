"""Opens a source shard, local or behind a URL, as one sequential stream that cannot hang.

A thread reads blocks ahead into a bounded queue. The reader waits for a block no longer than the stall
timeout; a stall, an I/O error or an early end makes it open the source again behind the last byte it got,
a bounded number of times. A thread that is stuck inside a read cannot be ended from outside: it is
abandoned, and ends by itself when its read returns.
"""

import io
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

import fsspec
from fsspec.core import split_protocol, url_to_fs

from pipeline.error_text import one_line
from pipeline.http_source import open_http

logger = logging.getLogger(__name__)

OpenAt = Callable[[int], tuple[BinaryIO, int | None]]
"""Opens the source at a byte offset; gives the handle and the total size where known."""

PERMANENT_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)
"""Trying again cannot help."""
LOCAL_BLOCK_BYTES = 1024**2
EXTRAS = {
    "s3": "pip install 'seed-shards[s3]'",
    "s3a": "pip install 'seed-shards[s3]'",
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
    "http": "pip install aiohttp",
    "https": "pip install aiohttp",
    "hf": "pip install huggingface_hub",
}


class SourceReadError(OSError):
    """A source could not be read to its end, after all retries."""


@dataclass(frozen=True, kw_only=True)
class SourceStreamConfig:
    """How a source shard is read."""

    block_bytes: int = 4 * 1024**2
    """Bytes of one read; for object stores one range request. Of a local file at most 1 MiB: what lies ahead
    takes place in the processor's caches, which decoding needs."""
    num_blocks_ahead: int = 3
    """Blocks held ready, so that a slow store overlaps with decoding."""
    stall_timeout_s: float = 60.0
    """Longest wait for the next block, opening included, before the source counts as stalled."""
    max_retries: int = 4
    """Times in a row that the source is opened again without a byte gained."""
    retry_delay_s: float = 0.5
    """Pause before the first retry; doubled each time."""

    def __post_init__(self) -> None:
        for name in ("block_bytes", "num_blocks_ahead", "stall_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"source_stream.{name} must be positive, got {getattr(self, name)}")
        for name in ("max_retries", "retry_delay_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"source_stream.{name} must not be negative, got {getattr(self, name)}")


def open_source(url: str, config: SourceStreamConfig | None = None) -> BinaryIO:
    """A sequential, buffered stream of the bytes at ``url`` (a local path or an fsspec URL).

    Raises:
        ValueError: if the package that reads this kind of URL is missing.
        FileNotFoundError, IsADirectoryError, PermissionError: when reading begins, naming ``url``.
        SourceReadError: while reading, when the source stalls or fails more often than the retries allow.
    """
    config = config or SourceStreamConfig()
    if is_local(url):
        config = replace(config, block_bytes=min(config.block_bytes, LOCAL_BLOCK_BYTES))
        return buffered_source(local_opener(url), url, config)
    return buffered_source(remote_opener(url, config.block_bytes), url, config)


def buffered_source(opener: OpenAt, url: str, config: SourceStreamConfig) -> BinaryIO:
    """The same over any function that opens the source at an offset."""
    return io.BufferedReader(_ReadAheadStream(opener, url, config), 1024**2)


def is_local(url: str) -> bool:
    protocol, _ = split_protocol(url)
    return protocol is None or (len(protocol) == 1 and os.name == "nt")


def local_opener(path: str) -> OpenAt:
    def open_at(offset: int) -> tuple[BinaryIO, int | None]:
        handle = open(path, "rb", buffering=0)  # noqa: SIM115  closed by the reading thread
        size = os.fstat(handle.fileno()).st_size
        handle.seek(offset)
        return handle, size

    return open_at


def remote_opener(url: str, block_bytes: int) -> OpenAt:
    filesystem, path = filesystem_of(url)

    def open_at(offset: int) -> tuple[BinaryIO, int | None]:
        if url.startswith(("http://", "https://")):
            return open_http(filesystem, path, offset)
        handle = filesystem.open(path, "rb", block_size=block_bytes)
        handle.seek(offset)
        return handle, getattr(handle, "size", None)

    return open_at


def filesystem_of(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a URL, and the path inside it.

    Raises:
        ValueError: naming the package to install, or that the protocol is unknown.
    """
    protocol, _ = split_protocol(url)
    try:
        filesystem, path = url_to_fs(url)
    except ImportError as error:
        remedy = EXTRAS.get(protocol or "", f"install the fsspec package for {protocol}://")
        raise ValueError(
            f"{url}: reading {protocol}:// needs a package that is not installed: {remedy}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from error
    return filesystem, path


class _ReadAheadStream(io.RawIOBase):
    """Raw stream over a reading thread, replaced by a new one when it stalls or fails."""

    def __init__(self, opener: OpenAt, url: str, config: SourceStreamConfig) -> None:
        self._opener = opener
        self._url = url
        self._config = config
        self._offset = 0
        self._size: int | None = None
        self._pending = memoryview(b"")
        self._is_at_end = False
        self._worker: _Worker | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._pending and not self._is_at_end:
            self._pending = memoryview(self._next_block())
            self._is_at_end = not self._pending
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def close(self) -> None:
        self._abandon_worker()
        super().close()

    def _next_block(self) -> bytes:
        """The next bytes, empty at the end; retries until bytes come or the retries are used up."""
        for attempt in range(self._config.max_retries + 1):
            if attempt:
                time.sleep(self._config.retry_delay_s * 2 ** (attempt - 1))
            try:
                block = self._block_once()
            except PERMANENT_ERRORS as error:
                self._abandon_worker()
                raise _with_url(error, self._url) from error
            except Exception as error:  # stores raise what they like: botocore, aiohttp, OSError
                self._abandon_worker()
                failure = error
                logger.warning(
                    "source=%s offset=%d attempt=%d %s", self._url, self._offset, attempt, one_line(error)
                )
            else:
                self._offset += len(block)
                return block
        raise SourceReadError(
            f"{self._url}: failed at byte {self._offset} "
            f"(retried {self._config.max_retries} times): {one_line(failure)}"
        ) from failure

    def _block_once(self) -> bytes:
        if self._worker is None:
            self._worker = _Worker(self._opener, self._offset, self._config)
        block, size = self._worker.next_block(self._config.stall_timeout_s)
        if self._size is None:
            self._size = size
        end = self._offset + len(block)
        if self._size is not None and (size not in (None, self._size) or end > self._size):
            changed = f"{self._size} bytes became {max(end, size or 0)}"
            raise ValueError(f"the source changed while it was read: {changed}")
        if not block and self._size is not None and self._offset < self._size:
            raise OSError(f"the source ended after {self._offset} of {self._size} bytes")
        return block

    def _abandon_worker(self) -> None:
        if self._worker is not None:
            self._worker.abandon()
            self._worker = None


class _Worker:
    """A daemon thread that reads blocks from an offset to the end, never more than a few ahead."""

    def __init__(self, opener: OpenAt, offset: int, config: SourceStreamConfig) -> None:
        self._opener = opener
        self._offset = offset
        self._block_bytes = config.block_bytes
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue()
        self._free_slots = threading.Semaphore(config.num_blocks_ahead)
        self._is_abandoned = False
        self._size: int | None = None
        threading.Thread(target=self._run, name="source-reader", daemon=True).start()

    def next_block(self, timeout_s: float) -> tuple[bytes, int | None]:
        """The next block, empty at the end, and the size of the source where known: when it was opened and,
        with the last block, when its end was reached.

        Raises:
            TimeoutError: if none came in time.
            Exception: what the source raised.
        """
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no byte for {timeout_s:g} s (source_stream.stall_timeout_s)") from None
        self._free_slots.release()
        if isinstance(item, BaseException):
            raise item
        return item, self._size

    def abandon(self) -> None:
        self._is_abandoned = True
        self._free_slots.release()

    def _run(self) -> None:
        try:
            handle, self._size = self._opener(self._offset)
            with handle:
                self._read_blocks(handle)
        except BaseException as error:  # handed to the reader, which decides
            self._queue.put(error)

    def _read_blocks(self, handle: BinaryIO) -> None:
        block = None
        while block != b"":
            self._free_slots.acquire()
            if self._is_abandoned:
                return
            block = handle.read(self._block_bytes)
            if not block:
                self._size = _size_now(handle) or self._size
            self._queue.put(block)


def _size_now(handle: BinaryIO) -> int | None:
    """The size of a local file; None for what has no file descriptor."""
    try:
        return os.fstat(handle.fileno()).st_size
    except (AttributeError, OSError):
        return None


def _with_url(error: Exception, url: str) -> Exception:
    """The same kind of error with a message that begins with the URL."""
    kind = next(kind for kind in PERMANENT_ERRORS if isinstance(error, kind))
    if isinstance(error, OSError) and error.strerror:
        return kind(error.errno, f"{url}: {error.strerror}")
    return kind(f"{url}: {error}")
