"""HTTP as a downloader of other people's URL lists needs it: no way inside, no answer without end.

A list from the web may name ``http://169.254.169.254/`` or a name that resolves to 10.0.0.1, and a public
server may redirect there. The opener made here resolves every name itself, refuses it unless all its
addresses are public, and connects to the very address that it checked (a second look-up could answer
otherwise). Each redirect is a new connection, so it is checked alike. There are no handlers for ``file:``,
``ftp:`` and ``data:``, and no proxy: a proxy would connect unchecked in our stead.

An answer is bounded in bytes and in total time, from the first connection over all redirects to the last
byte, not only in the time between two bytes. Looking a name up is not: its time is the resolver's.

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
from weakref import WeakKeyDictionary

from pipeline.opt_out import OptOut, OptOutError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is given out (IANA); outside lie site-local, IPv4-compatible and local NAT64 addresses."""
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.88.99.0/24", "3fff::/20")))
"""6to4 relays and documentation, which not every Python's ``is_global`` knows."""
_MAX_REDIRECTS = 5


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Where the downloader may go, and what an answer may cost."""

    allowed_networks: tuple[str, ...] = ()
    """Networks that may be reached although they are not public, as ``10.1.0.0/16`` or ``::1/128``."""
    max_bytes: int = 32 * 1024**2
    """Largest answer, headers included. A process holds up to two answers a thread in memory."""
    max_seconds: float = 60.0
    """Longest time for one URL, from the first connection to the last byte, redirects included."""

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


def guarded_opener(limits: HttpLimits, opt_out: OptOut | None = None) -> urllib.request.OpenerDirector:
    """An opener for http and https URLs within ``limits``.

    Args:
        limits: where it may go, and what an answer may cost.
        opt_out: which answers and redirects are refused (`OptOutError`) because their server asks for it.
    """
    opener = urllib.request.OpenerDirector()
    deadlines = _Deadlines(limits.max_seconds)
    for handler in (
        _GuardedHttpHandler(limits, deadlines),
        _GuardedHttpsHandler(limits, deadlines),
        _RedirectHandler(deadlines),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    if opt_out is not None:
        opener.add_handler(_OptOutHandler(opt_out))
    return opener


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, also where it carries another one inside.

    IPv6 is public within 2000::/3 alone, and as IPv4-mapped or NAT64 of a public IPv4 address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = (*(ip.teredo or ()), *((ip.sixtofour,) if ip.sixtofour else ()))
        if ip not in _GLOBAL_UNICAST or not all(is_public(str(each)) for each in inner):
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


def connect(host: str, port: int, timeout_s: object, limits: HttpLimits, end: float) -> socket.socket:
    """A connection to one of the addresses of a host, all of which were checked.

    Args:
        host: name or address.
        port: TCP port.
        timeout_s: longest wait for an address to answer, and for bytes then, if it is a number.
        limits: which addresses may be reached.
        end: ``time.monotonic()`` at which there must be a connection.

    Raises:
        ForbiddenAddressError: if one of its addresses is not public and not in an allowed network.
        OSError: if it has none, or none answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not limits.allows(str(address[0])):
            name = f"{host} has the address {address[0]}, which" if host != address[0] else host
            raise ForbiddenAddressError(f"{name} is not public (--http.allowed-networks opens it)")
    last_error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        left_s = end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no complete answer within {limits.max_seconds:g} s")
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(min(timeout_s, left_s) if isinstance(timeout_s, (int, float)) else left_s)
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            last_error = error
    raise last_error


class _BoundedReader(io.RawIOBase):
    """The incoming bytes of one connection, within the limits."""

    def __init__(self, connection: socket.socket, limits: HttpLimits, end: float) -> None:
        self._raw = connection.makefile("rb", buffering=0)
        self._connection = connection
        self._limits = limits
        self._timeout_s = connection.gettimeout()
        self._end = end
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

    def __init__(self, connection: socket.socket, limits: HttpLimits, end: float) -> None:
        self._reader = _BoundedReader(connection, limits, end)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(self._reader)


class _GuardedHttpConnection(http.client.HTTPConnection):
    def __init__(self, host: str, *, limits: HttpLimits, end: float, **settings: Any) -> None:
        super().__init__(host, **settings)
        self.limits = limits
        self.end = end

    def connect(self) -> None:
        self.sock = connect(self.host, self.port, self.timeout, self.limits, self.end)

    def response_class(  # type: ignore[override]  # a function will do: http.client only calls it
        self, sock: socket.socket, *args: Any, **settings: Any
    ) -> http.client.HTTPResponse:
        """What http.client calls to read an answer."""
        source: Any = _BoundedSource(sock, self.limits, self.end)
        return http.client.HTTPResponse(source, *args, **settings)


class _GuardedHttpsConnection(_GuardedHttpConnection):
    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, *, tls: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(host, **settings)
        self._tls = tls

    def connect(self) -> None:
        super().connect()
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)


class _Deadlines:
    """When each request must be answered; what a redirect leads to inherits from the request before it."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._inherited = WeakKeyDictionary[urllib.request.Request, float]()
        self._begun = WeakKeyDictionary[urllib.request.Request, float]()

    def begin(self, request: urllib.request.Request) -> float:
        """The ``time.monotonic()`` at which the answer must be there."""
        self._begun[request] = self._inherited.get(request, time.monotonic() + self._max_seconds)
        return self._begun[request]

    def pass_on(self, request: urllib.request.Request, following: urllib.request.Request) -> None:
        self._inherited[following] = self._begun[request]


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    max_redirections = _MAX_REDIRECTS

    def __init__(self, deadlines: _Deadlines) -> None:
        self._deadlines = deadlines

    def redirect_request(
        self, req: urllib.request.Request, *answer: Any, **settings: Any
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, *answer, **settings)
        if following is not None:
            self._deadlines.pass_on(req, following)
        return following


class _OptOutHandler(urllib.request.BaseHandler):
    handler_order = 100  # before redirects are followed

    def __init__(self, opt_out: OptOut) -> None:
        self._opt_out = opt_out

    def http_response(
        self, _: urllib.request.Request, answer: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        if answer.status >= 400:  # "noindex" stands on many error pages: the error says more
            return answer
        try:
            self._opt_out.check(answer.headers.get_all("X-Robots-Tag", []))
        except OptOutError:
            answer.close()
            raise
        return answer

    https_response = http_response


class _GuardedHttpHandler(urllib.request.HTTPHandler):
    def __init__(self, limits: HttpLimits, deadlines: _Deadlines) -> None:
        super().__init__()
        self._connection = partial(_GuardedHttpConnection, limits=limits)
        self._deadlines = deadlines

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request, end=self._deadlines.begin(request))


class _GuardedHttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, limits: HttpLimits, deadlines: _Deadlines) -> None:
        super().__init__()
        tls = ssl.create_default_context()
        self._connection = partial(_GuardedHttpsConnection, limits=limits, tls=tls)
        self._deadlines = deadlines

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request, end=self._deadlines.begin(request))
