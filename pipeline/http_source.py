"""A shard on a web server as one answer, read from a byte on: no range request a block, no HEAD request.

Servers without ranges (``python -m http.server`` is one) are read through up to the byte that is wanted.
"""

from typing import Any, BinaryIO

from fsspec import AbstractFileSystem

_SKIP_BYTES = 1024**2


def open_http(filesystem: AbstractFileSystem, url: str, offset: int) -> tuple[BinaryIO, int | None]:
    """The bytes of an answer from ``offset`` on, and the size of the whole where the server tells it.

    Args:
        filesystem: fsspec's for http, with what it was configured to send (headers, proxies, credentials).
        url: what to get.
        offset: first byte.

    Raises:
        FileNotFoundError: for 404.
        OSError: for any other status that is no success.
        aiohttp.ClientError: without a connection, or while reading where it ends early.
    """
    import aiohttp  # fsspec's file system for http needs it, too

    headers = {**filesystem.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    timeout = aiohttp.ClientTimeout(total=None)  # how long a read may take is for the stream to say
    # Of a file whose size is said fsspec asks nothing; with blocks of zero bytes it gives one long answer.
    try:
        handle = filesystem.open(url, "rb", block_size=0, size=1, headers=headers, timeout=timeout)
    except aiohttp.ClientResponseError as error:  # shown in full it holds the headers, credentials too
        raise OSError(f"HTTP status {error.status} {error.message}") from None
    has_range = handle.r.status == 206
    if has_range and not handle.r.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
        handle.close()
        raise OSError(f"asked for bytes from {offset} on, got {handle.r.headers.get('Content-Range')}")
    size = _size_of(handle.r.headers, has_range)
    if not has_range:
        _skip(handle, offset)
    return handle, size


def _size_of(headers: Any, has_range: bool) -> int | None:
    if "Content-Encoding" in headers:  # the length is that of the compressed bytes
        return None
    told = headers.get("Content-Range", "").rpartition("/")[2] if has_range else headers.get("Content-Length")
    return int(told) if told and told.isdecimal() else None


def _skip(handle: BinaryIO, num_bytes: int) -> None:
    while num_bytes > 0 and (piece := handle.read(min(num_bytes, _SKIP_BYTES))):
        num_bytes -= len(piece)
