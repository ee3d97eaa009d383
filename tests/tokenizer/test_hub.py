"""Weights from the Hugging Face hub: its real client against a small server on loopback that speaks its protocol."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tokenizer.conftest import GOLDEN_DIRECTORY

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = {"main", COMMIT, "v2"}


class HubHandler(BaseHTTPRequestHandler):
    """HEAD and GET of ``/{repo}/resolve/{revision}/{file}``, as the hub answers them."""

    files: dict[str, bytes]
    requests: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if repo not in {name.rpartition(":")[0] for name in self.files}:
            return self.refuse("RepoNotFound")
        if revision not in REVISIONS:
            return self.refuse("RevisionNotFound")
        content = self.files.get(f"{repo}:{file}")
        if content is None:
            return self.refuse("EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    tiny = GOLDEN_DIRECTORY / "tiny512"
    torch.save(load_file(tiny / "model.safetensors"), tmp_path / "seed_quantizer.pt")
    release = (tmp_path / "seed_quantizer.pt").read_bytes()
    HubHandler.files = {
        "someone/small:model.safetensors": (tiny / "model.safetensors").read_bytes(),
        "someone/small:config.json": (tiny / "config.json").read_bytes(),
        "AILab-CVC/seed-tokenizer-2:seed_quantizer.pt": release,
    }
    HubHandler.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def info(hub: ThreadingHTTPServer, tmp_path: Path, source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m tokenizer info`` in a process of its own, since the hub's client reads its settings on import."""
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "tokenizer", "info", source]
    return subprocess.run(
        command, env=os.environ | settings | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_tokenizer_of_the_hub_is_loaded_and_then_cached(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    first = info(hub, tmp_path, "someone/small")
    assert first.returncode == 0, first.stderr
    assert '"n_embed": 512' in first.stdout
    assert any(request.startswith("GET") for request in HubHandler.requests)
    HubHandler.requests.clear()
    offline = info(hub, tmp_path, "someone/small", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout, offline.stderr
    assert not HubHandler.requests


def test_a_revision_and_a_file_can_be_named(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    pinned = info(hub, tmp_path, "someone/small@v2")
    assert pinned.returncode == 0, pinned.stderr
    assert any("/resolve/v2/" in request for request in HubHandler.requests)
    unknown = info(hub, tmp_path, "someone/small@v9")
    assert unknown.returncode == 2
    assert "someone/small: the hub did not give config.json" in unknown.stderr


@pytest.mark.parametrize("source", ["seed-2", "AILab-CVC/seed-tokenizer-2"])
def test_the_release_is_fetched_from_its_repository(hub: ThreadingHTTPServer, tmp_path: Path, source: str) -> None:
    # The server's file has the tiny sizes, so reading it must end at its unknown head count, not before.
    result = info(hub, tmp_path, source)
    assert "GET /AILab-CVC/seed-tokenizer-2/resolve/main/seed_quantizer.pt" in " ".join(HubHandler.requests)
    assert result.returncode == 2
    assert "no head count is known for width 40" in result.stderr


def test_unknown_repositories_are_named(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    result = info(hub, tmp_path, "someone/else")
    assert result.returncode == 2
    assert "someone/else: the hub did not give" in result.stderr
    assert "Check the id" in result.stderr
    assert "Traceback" not in result.stderr


def test_being_offline_says_how_to_get_the_file(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    result = info(hub, tmp_path, "seed-2", HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    assert "hf download AILab-CVC/seed-tokenizer-2 seed_quantizer.pt" in result.stderr
    assert "Traceback" not in result.stderr
    assert not HubHandler.requests


def test_an_unreachable_hub_says_how_to_get_the_file(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    result = info(hub, tmp_path, "seed-2", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 2
    assert "hf download AILab-CVC/seed-tokenizer-2 seed_quantizer.pt" in result.stderr
    assert "Traceback" not in result.stderr
