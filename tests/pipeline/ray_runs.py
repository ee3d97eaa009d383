"""Runs of the engine in this process on a Ray cluster of several local nodes: what its tests share."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.run_plan import TokenizeJob, make_plan
from pipeline.tokenize_config import TokenizeConfig
from pipeline.tokenize_run import RunOutcome, run_tokenization
from tests.pipeline.tiny_shards import PAIRS

JOB_OF_PAIRS = TokenizeJob(kind="pairs", read=PAIRS)
NODE = {"object_store_memory": 100 << 20}


def run(shards: Path, folder: Path, **settings: object) -> RunOutcome:
    """One run, on the cluster that this process is connected to; by default with the null tokenizer."""
    config = TokenizeConfig(
        **{
            "input": (str(shards),),
            "output": str(folder),
            "tokenizer": "null",
            "batch_size": 4,
            "decode_workers": 0,
        }
        | settings
    )
    return run_tokenization(config, JOB_OF_PAIRS, make_plan(config, JOB_OF_PAIRS))


@contextmanager
def open_cluster(num_cpus: int, **head: Any) -> Iterator[Any]:
    """A cluster of one node, to which tests add nodes; this process is connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": num_cpus, "include_dashboard": False, **NODE, **head},
    )
    ray.init(address=cluster.address, logging_level="WARNING")
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def health_checks(period_s: float, failures: int) -> Mapping[str, Any]:
    """Arguments of a head that gives up nodes sooner than after Ray's half a minute."""
    milliseconds = int(period_s * 1000)
    return {
        "_system_config": {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": milliseconds,
            "health_check_timeout_ms": milliseconds,
            "health_check_failure_threshold": failures,
        }
    }


def num_joined(folder: Path) -> int:
    """Workers that the run log saw to join."""
    return sum(log.read_text().count('"worker_joined"') for log in (folder / "_logs").glob("*.jsonl"))


def in_background(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread
