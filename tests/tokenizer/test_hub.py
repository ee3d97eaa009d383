"""Weights from the Hugging Face hub: its real client against a small server on loopback that speaks its
protocol.
"""

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from tests.http_server import serving_in_thread
from tests.tokenizer.conftest import GOLDEN_DIRECTORY
from tokenizer.hub import NotDownloadedError, locate

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
    with serving_in_thread(server):
        yield server


LOCATE = """
import sys
from tokenizer.hub import locate
try:
    files = locate(sys.argv[1])
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
print(files.weights, files.config)
"""


def run(
    hub: ThreadingHTTPServer, tmp_path: Path, *command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, since the hub's client reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_tokenizer_of_the_hub_is_loaded_and_then_cached(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    first = run(hub, tmp_path, "-m", "tokenizer", "info", "someone/small")
    assert first.returncode == 0, first.stderr
    assert '"n_embed": 512' in first.stdout
    assert any(request.startswith("GET") for request in HubHandler.requests)
    HubHandler.requests.clear()
    offline = run(hub, tmp_path, "-m", "tokenizer", "info", "someone/small", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout, offline.stderr
    assert not HubHandler.requests


def test_a_revision_can_be_named(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    pinned = run(hub, tmp_path, "-c", LOCATE, "someone/small@v2:config.json")
    assert pinned.returncode == 0, pinned.stderr
    assert any("/resolve/v2/" in request for request in HubHandler.requests)
    unknown = run(hub, tmp_path, "-c", LOCATE, "someone/small@v9")
    assert unknown.returncode == 1
    assert "someone/small: the hub did not give config.json" in unknown.stderr


@pytest.mark.parametrize("source", ["seed-2", "AILab-CVC/seed-tokenizer-2"])
def test_the_release_is_fetched_from_its_repository(
    hub: ThreadingHTTPServer, tmp_path: Path, source: str
) -> None:
    result = run(hub, tmp_path, "-c", LOCATE, source)
    assert result.returncode == 0, result.stderr
    assert "GET /AILab-CVC/seed-tokenizer-2/resolve/main/seed_quantizer.pt" in HubHandler.requests
    weights, config = result.stdout.split()
    assert Path(weights).read_bytes() == HubHandler.files["AILab-CVC/seed-tokenizer-2:seed_quantizer.pt"]
    assert config == "None"


def test_unknown_repositories_are_named(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    result = run(hub, tmp_path, "-c", LOCATE, "someone/else")
    assert result.returncode == 1
    assert "someone/else: the hub did not give" in result.stderr
    assert "Check the id" in result.stderr
    assert "Traceback" not in result.stderr


def test_being_offline_says_how_to_get_the_file(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    result = run(hub, tmp_path, "-c", LOCATE, "seed-2", HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    assert "hf download AILab-CVC/seed-tokenizer-2 seed_quantizer.pt" in result.stderr
    assert "Traceback" not in result.stderr
    assert not HubHandler.requests


def test_retries_of_the_client_are_kept_quiet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its logger prints each of them, and so does ours."""
    client = logging.getLogger("huggingface_hub")

    def retry_in_vain(*_: object, **__: object) -> str:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", retry_in_vain)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    caplog.set_level(logging.WARNING, client.name)
    caplog.set_level(logging.INFO, "tokenizer.hub")
    with pytest.raises(NotDownloadedError):
        locate("seed-2")
    said = "asking the Hugging Face hub for seed_quantizer.pt of AILab-CVC/seed-tokenizer-2"
    assert caplog.messages == [said]
    assert client.level == logging.WARNING


@pytest.mark.slow  # the client retries for half a minute
def test_an_unreachable_hub_says_how_to_get_the_file(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    result = run(hub, tmp_path, "-c", LOCATE, "seed-2", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "hf download AILab-CVC/seed-tokenizer-2 seed_quantizer.pt" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("sed-2", "did you mean 'seed-2'"),
        ("Sample", "did you mean 'sample'"),
        ("./nowhere", "must be an existing file or directory"),
        ("a/b/c.pt", "must be an existing file or directory"),
        ("x", "Presets are seed-2, seed-2-training, sample"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(source: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        locate(source, local_files_only=True)


def test_the_training_preset_has_no_weights() -> None:
    with pytest.raises(ValueError, match="no weights are published"):
        locate("seed-2-training")


def test_directories(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds neither model"):
        locate(tmp_path)
    (tmp_path / "seed_quantizer.pt").touch()
    (tmp_path / "config.json").write_text("{}")  # belongs to something else in a clone of the release
    assert locate(tmp_path).config is None
    (tmp_path / "model.safetensors").touch()
    assert locate(tmp_path).config == tmp_path / "config.json"
