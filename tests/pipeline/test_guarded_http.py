"""The opener against a real server on loopback, which is private: only what is allowed is reached."""

import socket
import time
import urllib.error
import urllib.request

import pytest

from pipeline.guarded_http import HttpLimits, guarded_opener, is_public
from pipeline.opt_out import OptOut, OptOutError
from tests.pipeline.picture_server import serving

LOOPBACK_ONE = HttpLimits(allowed_networks=("127.0.0.1/32",))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "fec0::1", "64:ff9b:1::7f00:1", "64:ff9b:1::808:808", "::127.0.0.1", "::8.8.8.8",
        "::ffff:0:127.0.0.1", "2002:a00:1::", "2002:c0a8:101::1", "2001:0:1::1", "100::1", "3fff::1",
        "5f00::1", "4000::1", "192.88.99.1", "2001:0:7f00:1:0:0:f7f7:f7f7", "2001:0:808:808:0:0:80ff:fffe",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_loopback_is_refused_before_a_byte_is_sent() -> None:
    with serving({"/a.jpg": b"picture"}) as server:
        for url in (f"{server.url}/a.jpg", f"http://localhost:{server.server_address[1]}/a.jpg"):
            with pytest.raises(urllib.error.URLError, match="not public"):
                guarded_opener(HttpLimits()).open(url, timeout=5)
        assert not server.requests


def test_numbers_that_mean_loopback_are_refused() -> None:
    for host in (
        "2130706433", "0x7f.1", "0x7f000001", "127.1", "127.0.1", "0177.0.0.1", "017700000001",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::1]", "[0:0:0:0:0:0:0:1]", "0", "LOCALHOST",
    ):  # fmt: skip
        with pytest.raises(OSError, match="not public"):
            guarded_opener(HttpLimits()).open(f"http://{host}:9/", timeout=5)


Resolved = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]


def _resolver(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """A name server under somebody else's control: its answers to one question after the other."""
    remaining, asked = list(answers), []

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> Resolved:
        asked.append(host)
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, 6, "", (address, port)) for address in remaining.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["10.0.0.7"], ["8.8.8.8", "169.254.169.254"]])
def test_names_that_lead_inside_are_refused(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    _resolver(monkeypatch, addresses)
    with pytest.raises(urllib.error.URLError, match="not public"):
        guarded_opener(HttpLimits()).open("http://pictures.example.com/a.jpg", timeout=5)


def test_the_address_that_was_checked_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second answer would lead inside; the name is asked for once a connection only."""
    with serving({"/a.jpg": b"picture"}) as server, serving({"/a.jpg": b"secret"}, "127.0.0.2") as inside:
        port = server.server_address[1]
        asked = _resolver(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        opener = guarded_opener(LOOPBACK_ONE)
        assert opener.open(f"http://rebinding.example.com:{port}/a.jpg", timeout=5).read() == b"picture"
        assert asked == ["rebinding.example.com"]
        with pytest.raises(urllib.error.URLError, match="not public"):
            opener.open(f"http://rebinding.example.com:{port}/a.jpg", timeout=5)
        assert not inside.requests


def test_a_redirect_to_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({}) as front, serving({"/secret": b"secret"}, "127.0.0.2") as inside:
        target = f"http://inside.example.com:{inside.server_address[1]}/secret"
        _resolver(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        with pytest.raises(urllib.error.URLError, match=r"inside.example.com has the address 127\.0\.0\.2"):
            guarded_opener(LOOPBACK_ONE).open(f"{front.url}/redirect?to={target}", timeout=5)
        assert not inside.requests


def test_allowed_network_is_reached() -> None:
    with serving({"/a.jpg": b"picture"}) as server:
        assert guarded_opener(LOOPBACK_ONE).open(f"{server.url}/a.jpg", timeout=5).read() == b"picture"


def test_redirect_to_a_private_address_is_refused() -> None:
    with serving({}, "127.0.0.1") as front, serving({"/secret": b"secret"}, "127.0.0.2") as inside:
        with pytest.raises(urllib.error.URLError, match=r"error 127\.0\.0\.2 is not public"):
            guarded_opener(LOOPBACK_ONE).open(f"{front.url}/redirect?to={inside.url}/secret", timeout=5)
        assert front.requests["/redirect"] == 1
        assert not inside.requests


def test_redirect_within_what_is_allowed_is_followed() -> None:
    with serving({"/a.jpg": b"picture"}) as server:
        answer = guarded_opener(LOOPBACK_ONE).open(f"{server.url}/redirect?to={server.url}/a.jpg", timeout=5)
        assert answer.read() == b"picture"


def test_redirects_end() -> None:
    with serving({}) as server, pytest.raises(urllib.error.HTTPError, match="infinite loop"):
        guarded_opener(LOOPBACK_ONE).open(f"{server.url}/loop", timeout=5)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://x/"]
)
def test_other_schemes_are_unknown(url: str) -> None:
    with pytest.raises(urllib.error.URLError, match="unknown url type"):
        guarded_opener(LOOPBACK_ONE).open(url, timeout=5)


def test_redirect_to_a_file_is_refused() -> None:
    with serving({}) as server, pytest.raises(urllib.error.HTTPError, match="not allowed"):
        guarded_opener(LOOPBACK_ONE).open(f"{server.url}/redirect?to=file:///etc/passwd", timeout=5)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving({"/a.jpg": b"picture"}) as server:
        assert guarded_opener(LOOPBACK_ONE).open(f"{server.url}/a.jpg", timeout=5).read() == b"picture"


OPTED_OUT = [
    "noai", "NoAI", "none", "noindex, nofollow", "nofollow,noimageai", "*: noimageindex",
    "seed-shards: noai", "Seed-Shards : nofollow, noai", "noai, max-snippet: -1",
    "max-image-preview: large, noai", "unavailable_after: 25 Jun 2030 15:00:00 PST, noindex",
    "otherbot: nofollow, seed-shards: noai",
]  # fmt: skip
NOT_OPTED_OUT = [
    "", "all", "nofollow", "otherbot: noai", "max-snippet: -1", "otherbot: nofollow, noai", "noai-not",
    ":", ",,",
]  # fmt: skip


@pytest.mark.parametrize("header", OPTED_OUT)
def test_servers_that_opt_out(header: str) -> None:
    with pytest.raises(OptOutError, match="X-Robots-Tag: no"):
        OptOut("Seed-Shards").check(["nofollow", header])


@pytest.mark.parametrize("header", NOT_OPTED_OUT)
def test_servers_that_do_not_opt_out(header: str) -> None:
    OptOut("Seed-Shards").check([header])


def test_an_answer_that_opts_out_is_not_read_but_an_error_stays_one() -> None:
    with serving({"/a.jpg": b"picture"}) as server:
        opener = guarded_opener(LOOPBACK_ONE, OptOut("seed-shards"))
        assert opener.open(f"{server.url}/a.jpg", timeout=5).read() == b"picture"
        with pytest.raises(OptOutError):
            opener.open(f"{server.url}/robots/noai,+max-snippet:-1/a.jpg", timeout=5)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(f"{server.url}/gone.jpg", timeout=5)


def test_answers_are_bounded_in_bytes() -> None:
    limits = HttpLimits(allowed_networks=("127.0.0.1/32",), max_bytes=100_000)
    with serving({}) as server, pytest.raises(OSError, match="exceeds 100000 bytes"):
        guarded_opener(limits).open(f"{server.url}/huge", timeout=5).read()


def test_answers_are_bounded_in_time_however_steadily_they_drip() -> None:
    limits = HttpLimits(allowed_networks=("127.0.0.1/32",), max_seconds=0.6)
    begin = time.monotonic()
    with serving({}) as server, pytest.raises(TimeoutError):
        guarded_opener(limits).open(f"{server.url}/drip", timeout=5).read()
    assert time.monotonic() - begin < 5


def test_redirects_share_one_time_budget() -> None:
    """Each hop takes far less than the limit, all of them take more."""
    limits = HttpLimits(allowed_networks=("127.0.0.1/32",), max_seconds=2.0)
    with serving({}) as server:
        opener = guarded_opener(limits)
        with pytest.raises(OSError, match="within 2 s"):
            opener.open(f"{server.url}/slow-redirects?9", timeout=5).read()
        request = urllib.request.Request(f"{server.url}/slow-redirects?1")
        for _ in range(2):  # the same request again has its own time
            assert opener.open(request, timeout=5).read() == b""


def test_the_answers_of_a_process_fit_into_its_memory() -> None:
    """img2dataset holds up to two answers a thread: with 32 threads 2 GiB at most."""
    assert 2 * 32 * HttpLimits().max_bytes <= 2 * 1024**3


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="allowed_networks"):
        HttpLimits(allowed_networks=("10.0.0.0/33",))
    with pytest.raises(ValueError, match="max_bytes"):
        HttpLimits(max_bytes=0)
