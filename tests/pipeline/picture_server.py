"""A real HTTP server on loopback that serves pictures well, badly, slowly and elsewhere."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.http_server import serving_in_thread


class PictureServer(ThreadingHTTPServer):
    """Serves ``pictures`` by path; ``/redirect?to=URL`` and other special paths misbehave."""

    daemon_threads = True

    def __init__(self, address: str, pictures: dict[str, bytes]) -> None:
        super().__init__((address, 0), _Handler)
        self.pictures = pictures
        self.requests: Counter[str] = Counter()
        self.user_agents: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"


@contextmanager
def serving(pictures: dict[str, bytes], address: str = "127.0.0.1") -> Iterator[PictureServer]:
    """A server in a thread of this process."""
    server = PictureServer(address, pictures)
    with serving_in_thread(server):
        yield server


class _Handler(BaseHTTPRequestHandler):
    server: PictureServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None: ...

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.requests[path] += 1
        self.server.user_agents.add(self.headers["User-Agent"])
        special = {
            "/redirect": lambda: self._answer(302, b"", Location=query.removeprefix("to=")),
            "/loop": lambda: self._answer(302, b"", Location=self.server.url + self.path),
            "/slow-redirects": lambda: self._redirect_slowly(int(query)),
            "/error": lambda: self._answer(500, b"broken"),
            "/html": lambda: self._answer(200, b"<html>not found</html>", Content_Type="image/jpeg"),
            "/huge": lambda: self._stream(b"x" * 65536, pause_s=0, times=1000),
            "/drip": lambda: self._stream(b"x", pause_s=0.05, times=400),
            "/silent": lambda: time.sleep(20),
        }
        if path in special:
            special[path]()
        elif path.startswith("/robots/"):
            _, _, directive, name = path.split("/", 3)
            self._answer(200, self.server.pictures[f"/{name}"], X_Robots_Tag=directive.replace("+", ": "))
        elif path in self.server.pictures:
            self._answer(200, self.server.pictures[path], Content_Type="text/html" if query else "image/jpeg")
        else:
            self._answer(404, b"no such picture")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect_slowly(self, num_left: int) -> None:
        time.sleep(0.4)
        following = f"{self.server.url}/slow-redirects?{num_left - 1}"
        self._answer(302 if num_left else 200, b"", **{"Location": following} if num_left else {})

    def _stream(self, piece: bytes, pause_s: float, times: int) -> None:
        """An answer of unknown length, ended by closing."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for _ in range(times):
                self.wfile.write(piece)
                time.sleep(pause_s)
        except OSError:
            pass  # the client had enough
        self.close_connection = True
