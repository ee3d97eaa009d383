"""A Ray cluster on this machine with its dashboard, as `ray start --head` makes one."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cluster_environment() -> dict[str, str]:
    """Variables for the cluster and its clients: nothing of other tests' clusters, this interpreter first."""
    foreign = ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {
        "PATH": path,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": f"/tmp/ray_{os.getpid()}",  # short: sockets stand below it
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def local_cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """A cluster of 2 CPUs started in a folder: its dashboard, for ``ray job submit``, and its address."""
    port, dashboard = free_port(), free_port()
    start = [
        *RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2",
        "--include-dashboard=true", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}",
        f"--ray-client-server-port={free_port()}", "--object-store-memory=100000000", "--block",
    ]  # fmt: skip
    head = subprocess.Popen(
        start,
        cwd=folder,
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def _wait_for(port: int) -> None:
    """Until the head listens there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


def run_until_up(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """What a client of the cluster prints; tried again while the cluster is still starting."""
    deadline = time.monotonic() + 90
    while True:
        result = subprocess.run(
            command, cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=240
        )
        output = result.stdout + result.stderr
        is_up = "Failed to connect" not in output and "No available agent" not in output
        if is_up or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert result.returncode == 0, output
    return output
