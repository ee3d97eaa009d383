"""A build on a Ray cluster that loses a node at work: its tasks are done again elsewhere, to equal bytes."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipeline.packing.build import Build
from pipeline.packing.mixture_file import load_mixture
from tests.packing.corpus import mixture_text, write_corpus
from tests.packing.marking_tasks import MarkingExecutor

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of one node with 1 CPU, to which the test adds another."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    ray.init(address=cluster.address, logging_level="WARNING")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_node_that_dies_costs_only_the_tasks_it_had_in_hand(cluster: Any, tmp_path: Path) -> None:
    """Raylet and workers of the added node are killed with SIGKILL while it works."""
    corpus = write_corpus(tmp_path / "corpus", num_pairs=600, num_pages=30)
    (corpus / "mixture.yaml").write_text(mixture_text(output="{ids: 60000}"))
    mixture = load_mixture(corpus / "mixture.yaml")
    Build(mixture, tmp_path / "alone").run()

    marks = tmp_path / "marks"
    node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    executor = MarkingExecutor(num_workers=3, use_ray=True, marks=marks)
    reports: list[dict[str, Any]] = []
    thread = Thread(target=lambda: reports.append(Build(mixture, tmp_path / "out", executor).run()))
    thread.start()
    lost = marks / node.node_id
    deadline = time.monotonic() + 120
    while not lost.exists() and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)
    thread.join(timeout=240)

    (report,) = reports
    begun = {folder.name: {mark.name for mark in folder.iterdir()} for folder in marks.iterdir()}
    elsewhere = set().union(*(names for name, names in begun.items() if name != node.node_id))
    assert begun[node.node_id] & elsewhere, "no task of the lost node was done again"
    assert report["ids"] > 50_000
    files = {path.name: path.read_bytes() for path in (tmp_path / "alone").glob("packed-*.parquet")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("packed-*.parquet")} == files
    assert not list((tmp_path / "out").rglob(".tmp-*"))
