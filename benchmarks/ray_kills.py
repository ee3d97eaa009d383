"""A Ray cluster of this machine whose actors, nodes and drivers can be killed: `benchmarks.kills --ray`."""

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.fault_points import VARIABLE
from tests.pipeline.tiny_shards import job_command, job_environment

VICTIMS = ("actor", "actor", "node", "node", "driver")
OBJECT_STORE_BYTES = 100 << 20
MAX_KILLS_OF_A_RUN = 4
MAX_RUN_S = 300.0


class KillableCluster:
    """A head that runs no actors, and two nodes for one actor each: a node that is killed is replaced."""

    def __init__(self, rng: random.Random) -> None:
        from ray.cluster_utils import Cluster

        # Actors get their environment from the raylet of their node: reading takes its time in them.
        os.environ[VARIABLE] = "slow:reading:*"
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._rng = rng
        self._victims: list[str] = []
        self._nodes = [self._add_node() for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def _add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)

    def next_victim(self) -> str:
        """In random order, each of ``VICTIMS`` before one comes again: short runs kill all kinds."""
        self._victims = self._victims or self._rng.sample(VICTIMS, len(VICTIMS))
        return self._victims.pop()

    def kill_node(self) -> None:
        """SIGKILL to the raylet and everything else of a node; its actors die with it."""
        node = self._nodes.pop(self._rng.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add_node())

    def actors(self) -> list[int]:
        """Process ids of the actors that tokenize."""
        raylets = {info.process.pid for node in self._nodes for info in node.all_processes["raylet"]}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                is_actor = (folder / "cmdline").read_bytes().startswith(b"ray::EncodeActor")
            except OSError:  # it has just ended
                continue
            if is_actor and parent in raylets:
                found.append(int(folder.name))
        return found

    def close(self) -> None:
        self._cluster.shutdown()


def run_and_kill(
    cluster: KillableCluster, flags: list[str], rng: random.Random, max_kills: int
) -> tuple[Counter[str], bool]:
    """One run of the job on the cluster, with kills at random moments once an actor is there.

    Returns:
        What was killed, and whether the run came to its end (a killed driver ends it before).
    """
    killed: Counter[str] = Counter()
    deadline_s = time.monotonic() + MAX_RUN_S
    next_kill_s = 0.0
    with tempfile.TemporaryFile("w+") as messages:
        process = subprocess.Popen(
            job_command(*flags, "--num-actors", "2", "--max-attempts", "20"),
            env=job_environment({"RAY_ADDRESS": cluster.address}),
            stdout=messages,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None and time.monotonic() < deadline_s:
                time.sleep(0.05)
                if killed.total() >= min(max_kills, MAX_KILLS_OF_A_RUN) or not (actors := cluster.actors()):
                    continue
                next_kill_s = next_kill_s or time.monotonic() + rng.uniform(0.0, 6.0)
                if time.monotonic() < next_kill_s:
                    continue
                victim = cluster.next_victim()
                if victim == "actor":
                    with contextlib.suppress(ProcessLookupError):  # it has just ended
                        os.kill(rng.choice(actors), signal.SIGKILL)
                elif victim == "node":
                    cluster.kill_node()
                else:
                    process.kill()
                    process.wait()
                killed[f"SIGKILL of {victim}"] += 1
                next_kill_s = 0.0
        finally:
            has_hung = process.poll() is None
            process.kill()
            status = process.wait()
        messages.seek(0)
        assert not has_hung, f"the job did not end: {messages.read()}"
        assert status == 0 or (status == -signal.SIGKILL and killed["SIGKILL of driver"]), messages.read()
    if status == 0:  # a kill of the driver came too late
        del killed["SIGKILL of driver"]
    return killed, status == 0
