"""Nodes that are there and no good: without weights, hanging, dead and still listed; and a head that dies."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.fault_points import VARIABLE
from pipeline.tokenize_run import RunOutcome
from tests.local_cluster import cluster_environment, local_cluster
from tests.pipeline.ray_runs import NODE, health_checks, in_background, num_joined, open_cluster, run
from tests.pipeline.tiny_shards import (
    ROOT,
    job_command,
    job_environment,
    run_job,
    token_files,
    wait_until,
    write_shards,
)

pytestmark = pytest.mark.ray
SLOW = {"env_vars": {VARIABLE: "slow:reading:*"}}
"""Of a node: its workers are at it long enough to be disturbed."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("in"), 12, 20)


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    run(shards, folder, num_actors=0)
    return token_files(folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A node of one core; nodes that do not answer are given up after two seconds."""
    with open_cluster(num_cpus=1, **SLOW, **health_checks(0.5, failures=4)) as cluster:
        yield cluster


def processes(node: Any, name: str = "") -> list[int]:
    """The raylet of a node and its children; only those with this name, where one is given."""
    (raylet,) = node.all_processes["raylet"]
    children = subprocess.run(
        ["pgrep", "-P", str(raylet.process.pid), "-f", name], capture_output=True, text=True
    )
    workers = [int(pid) for pid in children.stdout.split()]
    return workers if name else [raylet.process.pid, *workers]


def test_a_node_without_the_weights_costs_only_itself(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its place is not tried again and again, and the log names it."""
    bad = cluster.add_node(num_cpus=1, env_vars={VARIABLE: "fail:load:*"}, **NODE)
    outcome = run(shards, tmp_path / "out", cpus_per_actor=1)
    cluster.remove_node(bad, allow_graceful=False)
    assert outcome.failures == []
    assert token_files(tmp_path / "out") == undisturbed
    refusals = [line for line in caplog.messages if "did not start" in line]
    assert len(refusals) == 1, refusals
    assert f"on node {bad.node_id[:12]}" in refusals[0]
    assert "fault injected at load" in refusals[0]


@pytest.mark.slow  # two nodes, and Ray must find out
def test_a_node_that_hangs_is_given_up_and_what_it_writes_later_does_no_harm(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Frozen, as a virtual machine may be, and later awake again."""
    folder = tmp_path / "out"
    outcomes: list[RunOutcome] = []
    node = cluster.add_node(num_cpus=1, **SLOW, **NODE)
    thread = in_background(lambda: outcomes.append(run(shards, folder, cpus_per_actor=1, max_attempts=1)))
    assert wait_until(lambda: num_joined(folder) == 2)
    frozen = processes(node)
    assert len(frozen) > 1
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    thread.join(timeout=120)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    (outcome,) = outcomes
    assert outcome.failures == []
    assert outcome.progress.worker_losses == {"node_lost": 1}
    assert token_files(folder) == undisturbed
    cluster.remove_node(node, allow_graceful=False)
    assert token_files(folder) == undisturbed


@pytest.mark.slow  # a worker stalls, another starts
def test_an_actor_that_hangs_leaves_its_place_to_another(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Stopped, it cannot end itself when it is asked to."""
    folder = tmp_path / "out"
    outcomes: list[RunOutcome] = []
    settings = {"num_actors": 1, "cpus_per_actor": 1, "stall_timeout": 4.0}
    thread = in_background(lambda: outcomes.append(run(shards, folder, **settings)))
    assert wait_until(lambda: len(token_files(folder)) > 0)
    hanging = processes(cluster.head_node, "^ray::EncodeActor")
    assert hanging
    for pid in hanging:
        os.kill(pid, signal.SIGSTOP)
    thread.join(timeout=150)
    (outcome,) = outcomes
    assert outcome.failures == []
    assert outcome.progress.worker_losses == {"stalled": 1}
    assert token_files(folder) == undisturbed


@pytest.mark.slow  # a node comes and goes, and the model loads
def test_a_gpu_of_a_node_that_has_just_died_is_not_waited_for(cluster, shards: Path, tmp_path: Path) -> None:
    import ray

    node = cluster.add_node(num_cpus=1, num_gpus=1, **NODE)
    cluster.remove_node(node, allow_graceful=False)
    assert any(known["Alive"] and "GPU" in known["Resources"] for known in ray.nodes()), "nothing to test"
    outcome = run(shards, tmp_path / "out", tokenizer=str(ROOT / "tokenizer" / "sample"))
    assert outcome.failures == []


def test_an_object_store_that_others_fill_is_not_needed(
    cluster, shards: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    import ray

    held = [ray.put(np.zeros(NODE["object_store_memory"] // 10, np.uint8)) for _ in range(12)]
    assert run(shards, tmp_path / "out", num_actors=1, cpus_per_actor=1).failures == []
    assert token_files(tmp_path / "out") == undisturbed
    assert len(held) == 12


@pytest.mark.slow  # Ray's driver hopes for a minute that the head comes back
def test_the_head_dies(shards: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    flags = ["--input", str(shards), "--output", str(folder), "--num-actors", "1"]
    environment = cluster_environment() | {VARIABLE: "slow:reading:*"}
    with local_cluster(tmp_path, environment) as (_, address):
        on_cluster = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
        job = subprocess.Popen(
            job_command(*flags), env=job_environment(on_cluster), stderr=subprocess.PIPE, text=True
        )
        assert wait_until(lambda: len(token_files(folder)) > 1)
    _, errors = job.communicate(timeout=150)
    assert job.returncode == 1, errors
    assert errors.splitlines()[-1].startswith("error: the Ray cluster is gone"), errors
    resumed = run_job("--input", str(shards), "--output", str(folder))
    assert resumed.returncode == 0, resumed.stderr
    assert token_files(folder) == undisturbed
