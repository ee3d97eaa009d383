"""A RAY_ADDRESS that leads nowhere: one line that says so and what to do, at once."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import grpc
import pytest

from jobs.pretrain import main as pretrain
from pipeline import ray_cluster
from pipeline.packing.cli import main as seed_pack
from pipeline.shard_driver import PoolError
from tests.local_cluster import free_port
from tests.packing.corpus import mixture_text, write_corpus
from tests.pipeline.tiny_shards import run_job, write_shards

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


@pytest.fixture
def listen() -> Iterator[Callable[[str], int]]:
    """Ports of things that are no head of a Ray cluster."""
    with ExitStack() as stack:

        def start(kind: str) -> int:
            match kind:
                case "web server":
                    server = HTTPServer(("", 0), SimpleHTTPRequestHandler)
                    threading.Thread(target=server.serve_forever, daemon=True).start()
                    stack.callback(server.shutdown)
                    return server.server_port
                case "another gRPC server":
                    other = grpc.server(ThreadPoolExecutor(1))
                    port = other.add_insecure_port("0.0.0.0:0")
                    other.start()
                    stack.callback(other.stop, None)
                    return port
                case "silence":
                    listener = stack.enter_context(socket.create_server(("", 0)))
                    return listener.getsockname()[1]
            return free_port()

        yield start


@pytest.mark.parametrize(
    ("kind", "scheme", "reason"),
    [
        ("nothing", "", "Connection refused"),
        ("nothing", "ray://", "Connection refused"),
        ("nothing", "http://", "http:// is for `ray job submit`"),
        ("web server", "", "failed to connect"),
        ("another gRPC server", "", "what answers there is no head of a Ray cluster"),
        ("silence", "", "no answer in 1 s|failed to connect"),
    ],
)
def test_an_address_without_ray(
    listen: Callable[[str], int], kind: str, scheme: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "HEALTH_TIMEOUT_S", 1.0)
    address = f"{scheme}127.0.0.1:{listen(kind)}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PoolError, match=rf"Ray cluster at {address} .*({reason}).*; start it, correct"):
        ray_cluster.connect()


def test_the_job_ends_with_one_line(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", 1, 2)
    address = f"127.0.0.1:{free_port()}"
    flags = ("--input", str(shards), "--output", str(tmp_path / "out"), "--num-actors", "1")
    result = run_job(*flags, environment={"RAY_ADDRESS": address}, timeout=60)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: the Ray cluster at {address} (RAY_ADDRESS) cannot be reached: ")
    assert "unset it to run on this machine" in line


def test_a_build_of_packed_shards_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    corpus = write_corpus(tmp_path / "corpus", num_pairs=20, num_pages=2)
    (corpus / "mixture.yaml").write_text(mixture_text(output="{ids: 2000}"))
    with pytest.raises(SystemExit) as ended:
        seed_pack(["build", str(corpus / "mixture.yaml"), "--output", str(tmp_path / "out"), "--ray"])
    assert ended.value.code == 1
    assert "(RAY_ADDRESS) cannot be reached" in caplog.messages[-1]


def test_training_on_ray_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    flags = ["--launcher", "ray", "--data.packed", str(tmp_path), "--output", str(tmp_path / "out")]
    assert pretrain(flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "(RAY_ADDRESS) cannot be reached" in line


@pytest.mark.parametrize(
    ("chosen", "events", "colour", "has_token"),
    [
        ({}, "0", "0", True),
        ({"RAY_SCHEDULER_EVENTS": "1", "RAY_COLOR_PREFIX": "1"}, "1", "1", True),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, None, "0", False),
    ],
)
def test_a_private_cluster_says_nothing_of_an_autoscaler_and_pipes_get_no_colours(
    chosen: dict[str, str], events: str | None, colour: str, has_token: bool
) -> None:
    """Ray itself is asked what it makes of it."""
    script = (
        "import json, os; from pipeline.ray_cluster import settle_environment; settle_environment();"
        " from ray._private.ray_constants import AUTOSCALER_EVENTS as events;"
        " names = ('RAY_SCHEDULER_EVENTS', 'RAY_COLOR_PREFIX', 'RAY_AUTH_TOKEN');"
        " print(json.dumps([events, *map(os.environ.get, names)]))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, env=kept | chosen, capture_output=True, text=True, check=True)
    rays, *ours, token = json.loads(result.stdout)
    assert rays == int(events or "1")
    assert ours == [events, colour]
    assert bool(token) == has_token
