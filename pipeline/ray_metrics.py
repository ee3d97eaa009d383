"""The run as Ray metrics, for Prometheus."""

from ray.util.metrics import Counter, Gauge

from pipeline.shard_driver import RunListener, WorkerStatus
from pipeline.shard_schedule import LossCause, ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport


class RayMetrics(RunListener):
    """Counts for Prometheus, under the names of docs/cluster.md."""

    def __init__(self) -> None:
        self._images = Counter("seed_shards_images", "Images that were written.")
        self._samples = Counter("seed_shards_samples_quarantined", "Samples refused.", tag_keys=("reason",))
        self._shards = Counter(
            "seed_shards_shards", "Source shards, by what became of them.", tag_keys=("state",)
        )
        self._workers = Gauge("seed_shards_workers", "Workers that are ready.")
        self._wait = Gauge(
            "seed_shards_model_wait_fraction", "Share of model time without data.", tag_keys=("worker",)
        )
        self._remaining = Gauge("seed_shards_shards_remaining", "Source shards not finished.")
        self._num_workers = 0

    def shard_done(self, report: ShardReport) -> None:
        self._shards.inc(1, {"state": "done"})
        if report.counts.images_written:
            self._images.inc(report.counts.images_written)
        for reason, number in report.counts.samples_quarantined.items():
            self._samples.inc(number, {"reason": reason})

    def shard_retried(self, name: str, error: str) -> None:
        self._shards.inc(1, {"state": "retried"})

    def shard_set_aside(self, failure: ShardFailure) -> None:
        self._shards.inc(1, {"state": "failed"})

    def worker_joined(self, worker_id: str) -> None:
        self._num_workers += 1

    def worker_lost(self, worker_id: str, loss: LossCause, error: str) -> None:
        self._num_workers -= 1

    def worker_status(self, status: WorkerStatus) -> None:
        whole_s = status.busy_s + status.starved_s
        if whole_s:
            self._wait.set(status.starved_s / whole_s, {"worker": status.worker_id})

    def tick(self, schedule: ShardSchedule) -> None:
        self._workers.set(self._num_workers)
        self._remaining.set(schedule.num_unassigned + schedule.num_running)
