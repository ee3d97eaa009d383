"""HTTP as a downloader of other people's URL lists needs it: no way inside, no answer without end.

A list from the web may name ``http://169.254.169.254/`` or a name that resolves to 10.0.0.1, and a public
server may redirect there. The opener made here resolves every name itself, refuses it unless all its
addresses are public, and connects to the very address that it checked (a second look-up could answer
otherwise). Each redirect is a new connection, so it is checked alike. There are no handlers for ``file:``,
``ftp:`` and ``data:``, and no proxy: a proxy would connect unchecked in our stead.

An answer is bounded in bytes and in total time, headers and redirects included, not only in the time
between two bytes.

How img2dataset comes to use it: it calls ``urllib.request.urlopen``, and the standard library lets a process
choose what that uses (``urllib.request.install_opener``). Our worker processes do that when they start
(`ingest`); nothing of img2dataset is altered.
"""

import http.client
import io
import ipaddress
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from typing import Any

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MAX_REDIRECTS = 5


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Where the downloader may go, and what an answer may cost."""

    allowed_networks: tuple[str, ...] = ()
    """Networks that may be reached although they are not public, as ``10.1.0.0/16`` or ``::1/128``."""
    max_bytes: int = 128 * 1024**2
    """Largest answer, headers included."""
    max_seconds: float = 60.0
    """Longest time for one answer, from the connection to its last byte."""

    def __post_init__(self) -> None:
        for network in self.allowed_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"allowed_networks: {error}") from error
        if self.max_bytes <= 0 or self.max_seconds <= 0:
            raise ValueError(
                f"max_bytes and max_seconds must be positive, got {self.max_bytes} and {self.max_seconds}"
            )

    def allows(self, address: str) -> bool:
        """Whether an IP address may be connected to."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        return is_public(address) or any(ip in ipaddress.ip_network(each) for each in self.allowed_networks)


class ForbiddenAddressError(OSError):
    """A name leads to an address that is not public."""


def guarded_opener(limits: HttpLimits) -> urllib.request.OpenerDirector:
    """An opener for http and https URLs within ``limits``."""
    opener = urllib.request.OpenerDirector()
    redirects = urllib.request.HTTPRedirectHandler()
    redirects.max_redirections = _MAX_REDIRECTS
    for handler in (
        _GuardedHttpHandler(limits),
        _GuardedHttpsHandler(limits),
        redirects,
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, also where it carries another one inside."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def connect(host: str, port: int, timeout_s: object, limits: HttpLimits) -> socket.socket:
    """A connection to one of the addresses of a host, all of which were checked.

    Raises:
        ForbiddenAddressError: if one of its addresses is not public and not in an allowed network.
        OSError: if it has none, or none answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not limits.allows(str(address[0])):
            raise ForbiddenAddressError(f"{host} has the address {address[0]}, which is not public")
    last_error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout_s if isinstance(timeout_s, (int, float)) else limits.max_seconds)
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            last_error = error
    raise last_error


class _BoundedReader(io.RawIOBase):
    """The incoming bytes of one connection, within the limits."""

    def __init__(self, connection: socket.socket, limits: HttpLimits) -> None:
        self._raw = connection.makefile("rb", buffering=0)
        self._connection = connection
        self._limits = limits
        self._timeout_s = connection.gettimeout()
        self._end = time.monotonic() + limits.max_seconds
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = max(self._end - time.monotonic(), 1e-3)
        self._connection.settimeout(min(left_s, self._timeout_s or left_s))
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            if time.monotonic() < self._end:
                raise
            count = None
        if time.monotonic() >= self._end:
            raise TimeoutError(f"no complete answer within {self._limits.max_seconds:g} s")
        self._num_bytes += count or 0
        if self._num_bytes > self._limits.max_bytes:
            raise OSError(f"the answer exceeds {self._limits.max_bytes} bytes")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedSource:
    """What ``http.client.HTTPResponse`` takes for a socket: it only asks it for a file."""

    def __init__(self, connection: socket.socket, limits: HttpLimits) -> None:
        self._reader = _BoundedReader(connection, limits)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(self._reader)


class _GuardedHttpConnection(http.client.HTTPConnection):
    def __init__(self, host: str, *, limits: HttpLimits, **settings: Any) -> None:
        super().__init__(host, **settings)
        self.limits = limits

    def connect(self) -> None:
        self.sock = connect(self.host, self.port, self.timeout, self.limits)

    def response_class(self, sock: socket.socket, *args: Any, **settings: Any) -> http.client.HTTPResponse:
        """What http.client calls to read an answer."""
        return http.client.HTTPResponse(_BoundedSource(sock, self.limits), *args, **settings)


class _GuardedHttpsConnection(_GuardedHttpConnection):
    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, *, tls: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(host, **settings)
        self._tls = tls

    def connect(self) -> None:
        super().connect()
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


class _GuardedHttpHandler(urllib.request.HTTPHandler):
    def __init__(self, limits: HttpLimits) -> None:
        super().__init__()
        self._connection = partial(_GuardedHttpConnection, limits=limits)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request)


class _GuardedHttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, limits: HttpLimits) -> None:
        super().__init__()
        tls = ssl.create_default_context()
        self._connection = partial(_GuardedHttpsConnection, limits=limits, tls=tls)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request)
