"""What Prometheus finds at a node's ``--metrics-export-port`` while a run goes on."""

import re
import urllib.request
from urllib.error import URLError

import pytest
import ray

from pipeline.ray_metrics import RayMetrics
from pipeline.shard_driver import WorkerStatus
from pipeline.shard_schedule import ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport, ShardTask
from schemas.quarantine import Reason
from schemas.token_shard import ShardCounts
from tests.local_cluster import free_port
from tests.pipeline.tiny_shards import wait_until

pytestmark = pytest.mark.ray


def scraped(port: int) -> dict[str, float]:
    """Our metrics by name, with the labels that are ours; none while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except (URLError, ConnectionError):
        return {}
    found = re.findall(r"^ray_(seed_shards_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
    label = re.compile(r'\b(?:reason|state|worker)="([^"]*)"')
    return {" ".join([name, *label.findall(labels)]): float(value) for name, labels, value in found}


def test_a_scrape_gives_the_runs_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = {"metrics_report_interval_ms": 200}
    ray.init("local", num_cpus=1, include_dashboard=False, _metrics_export_port=port, _system_config=config)
    try:
        metrics = RayMetrics()
        counts = ShardCounts(images_written=7, samples_quarantined={Reason.CAPTION_EMPTY: 2})
        report = ShardReport(
            name="a", source="a.tar", counts=counts, source_complete=True, source_bytes=1, output_bytes=1,
            seconds=1.0,
        )  # fmt: skip
        for _ in range(2):
            metrics.shard_done(report)
        metrics.shard_retried("b", "died")
        metrics.shard_set_aside(ShardFailure("b", "b.tar", "died", attempts=3))
        metrics.worker_joined("0")
        metrics.worker_status(WorkerStatus("0", busy_s=3.0, starved_s=1.0))
        metrics.tick(ShardSchedule([ShardTask("c", "c.tar", 1)]))
        expected = {
            "seed_shards_images_total": 14,
            "seed_shards_samples_quarantined_total caption_empty": 4,
            "seed_shards_shards_total done": 2,
            "seed_shards_shards_total retried": 1,
            "seed_shards_shards_total failed": 1,
            "seed_shards_workers": 1,
            "seed_shards_model_wait_fraction 0": 0.25,
            "seed_shards_shards_remaining": 1,
        }
        assert wait_until(lambda: expected.items() <= scraped(port).items(), timeout_s=60), scraped(port)
    finally:
        ray.shutdown()
