"""A run on a cluster that Ray's autoscaler grows from nothing; its nodes are processes of this machine."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_cluster import RAY, cluster_environment, free_port
from tests.pipeline.tiny_shards import run_job, token_files, wait_until, write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # a head, a monitor and two nodes start one after the other

HEAD, WORKER = "ray.head.default", "with_gpu"
OBJECT_STORE_BYTES = 100 << 20
UNUSED_LISTS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[str]:
    """Address of a cluster of a head without CPUs and at most two nodes, of one CPU and one pretended GPU."""
    import ray

    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    worker = {"CPU": 1, "GPU": 1, "object_store_memory": OBJECT_STORE_BYTES}
    config = {
        "cluster_name": "test",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {
            HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            WORKER: {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": HEAD,
        **{name: [] for name in UNUSED_LISTS},
        **{name: {} for name in ("file_mounts", "auth", "docker")},
    }
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(config))
    start = [
        *RAY, "start", "--head", f"--port={address.rpartition(':')[2]}", "--num-cpus=0",
        "--include-dashboard=false", f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--autoscaling-config={path}", "--block",
    ]  # fmt: skip
    messages = tmp_path / "head.log"
    with messages.open("wb") as log:
        head = subprocess.Popen(
            start,
            env=cluster_environment() | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # all nodes are children of the head's monitor
        )
        try:
            assert wait_until(lambda: "Ray runtime started" in messages.read_text()), messages.read_text()
            yield address
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def test_workers_that_wait_make_a_cluster_of_no_nodes_grow(autoscaled: str, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", 6, 20)
    assert run_job("--input", str(shards), "--output", str(tmp_path / "alone")).returncode == 0
    flags = ["--input", str(shards), "--output", str(tmp_path / "out"), "--num-actors", "2"]
    environment = {"RAY_ADDRESS": autoscaled, "RAY_AUTH_MODE": "disabled"}
    result = run_job(*flags, "--gpus-per-actor", "1", environment=environment, timeout=170)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 workers wait for a node: each needs 1 CPUs and 1 GPUs" in result.stderr
    assert token_files(tmp_path / "out") == token_files(tmp_path / "alone")
