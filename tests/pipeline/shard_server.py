"""A real HTTP server on loopback that serves shards, with ranges or without, and fails as real ones do."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.http_server import serving_in_thread


class ShardServer(ThreadingHTTPServer):
    """Serves ``files`` by path. ``faults`` holds, by path, what happens to its next GET requests, in order.

    A fault is a status to answer with, or ``"cut"``: half of the promised bytes, then no more.
    ``has_ranges``: whether Range is honoured; ``has_length``: whether answers tell how long they are.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.faults: dict[str, list[int | str]] = {}
        self.has_ranges = self.has_length = True
        self.range_shift = 0
        """Bytes by which ranges are answered wrongly."""
        self.requests: Counter[str] = Counter()
        """By method, and ``range`` for those that ask for one."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving_shards(files: dict[str, bytes]) -> Iterator[ShardServer]:
    """A server in a thread of this process."""
    server = ShardServer(files)
    with serving_in_thread(server):
        yield server


class _Handler(BaseHTTPRequestHandler):
    server: ShardServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests[self.command] += 1
        self.server.requests["range"] += "Range" in self.headers
        faults = self.server.faults.get(path, [])
        fault = faults.pop(0) if faults else None
        data = self.server.files.get(path)
        if data is None or isinstance(fault, int):
            self._send(fault if isinstance(fault, int) else 404, b"no", {})
            return
        headers = {"Accept-Ranges": "bytes"} if self.server.has_ranges else {}
        status, body = 200, data
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.server.has_ranges:
            start, end = (
                int(asked[1]) + self.server.range_shift,
                min(int(asked[2] or len(data)) + 1, len(data)),
            )
            status, body = 206, data[start:end]
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._send(status, body, headers, is_cut=fault == "cut")

    def _send(self, status: int, body: bytes, headers: dict[str, str], is_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.server.has_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            time.sleep(0.4)  # a client that hears of the end first throws away what it has not yet read
            self.close_connection = True
