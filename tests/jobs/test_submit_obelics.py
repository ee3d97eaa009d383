"""`ray job submit jobs/tokenize_obelics.py` as written, and the form with flags, on a real local cluster.

The literal form runs where `ray start` ran, executes the file itself (executable bit, shebang found on that
PATH), and gets no flags: settings come from recipes/obelics_sample.yaml or from the environment.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.token_shard import check_token_shard

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
FOLDERS = ("schemas", "tokenizer", "pipeline", "jobs", "recipes", "samples")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that output lands in no working tree."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {
        "PATH": path,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": "/tmp/ray_obelics",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def address(checkout: Path, environment: dict[str, str]) -> Iterator[str]:
    """A cluster that was started in the checkout."""
    port, dashboard = _free_port(), _free_port()
    start = [
        *RAY, "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=true",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={_free_port()}",
        f"--dashboard-agent-grpc-port={_free_port()}", f"--ray-client-server-port={_free_port()}",
        "--object-store-memory=100000000", "--block",
    ]  # fmt: skip
    head = subprocess.Popen(
        start,
        cwd=checkout,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def _submit(checkout: Path, environment: dict[str, str], address: str, *arguments: str) -> str:
    command = [*RAY, "job", "submit", f"--address={address}", *arguments]
    deadline = time.monotonic() + 90
    while True:
        result = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=240
        )
        output = result.stdout + result.stderr
        is_up = "Failed to connect" not in output and "No available agent" not in output
        if is_up or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert result.returncode == 0, output
    return output


def test_as_written(checkout: Path, environment: dict[str, str], address: str) -> None:
    output = _submit(checkout, environment, address, "jobs/tokenize_obelics.py")
    assert "2 token shards written" in output
    shards = sorted((checkout / "out/obelics_sample").glob("*.parquet"))
    assert sum(check_token_shard(shard).counts.images_written for shard in shards) == 21


def test_with_a_working_directory_and_flags(
    checkout: Path, environment: dict[str, str], address: str, tmp_path: Path
) -> None:
    pattern = checkout / "samples/documents/*.tar"
    script = [
        sys.executable,
        "jobs/tokenize_obelics.py",
        "--input",
        str(pattern),
        "--output",
        str(tmp_path / "out"),
    ]
    flags = ["--tokenizer", "null", "--num-actors", "1", "--decode-workers", "1"]
    _submit(checkout, environment, address, "--working-dir", ".", "--", *script, *flags)
    shards = sorted((tmp_path / "out").glob("*.parquet"))
    assert sum(check_token_shard(shard).counts.documents_written for shard in shards) == 11
