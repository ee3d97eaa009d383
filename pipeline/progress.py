"""How a run goes: totals as events come in, shown on a terminal, or as a log line now and then."""

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.shard_driver import RunListener, WorkerStatus
from pipeline.shard_schedule import LossCause, ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport, is_unread
from schemas.token_shard import ShardCounts

logger = logging.getLogger(__name__)

RATE_WINDOW_S = 60.0
SAMPLE_EVERY_S = 0.5
LOG_EVERY_S = 15.0
MAX_FAILURES_SHOWN = 5
BAR_WIDTH = 40


class RunProgress(RunListener):
    """Totals of a run.

    Args:
        num_shards: shards to be done in this run.
        num_bytes: of those source shards, where all sizes are known.
        clock: seconds that only grow.
    """

    def __init__(
        self, num_shards: int, num_bytes: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_shards = num_shards
        self.num_bytes = num_bytes
        self.counts = ShardCounts()
        self.quarantined = Counter[str]()
        self.num_done = 0
        self.num_incomplete = 0
        self.num_retries = 0
        self.bytes_done = 0
        self.output_bytes = 0
        self.failures: list[ShardFailure] = []
        self.worker_losses = Counter[str]()
        self.peak_worker_bytes = 0
        self._clock = clock
        self._begin_s = clock()
        self._workers: dict[str, WorkerStatus | None] = {}
        self._gone = WorkerStatus("gone")
        self._recent: deque[tuple[float, int]] = deque()

    def shard_done(self, report: ShardReport) -> None:
        self.num_done += 1
        self.num_incomplete += not report.source_complete
        self.bytes_done += report.source_bytes or 0
        self.output_bytes += report.output_bytes
        self.counts += report.counts
        self.quarantined.update(report.counts.samples_quarantined)

    def shard_retried(self, name: str, error: str) -> None:
        self.num_retries += 1

    def shard_set_aside(self, failure: ShardFailure) -> None:
        self.failures.append(failure)

    def worker_joined(self, worker_id: str) -> None:
        self._workers[worker_id] = None

    def worker_lost(self, worker_id: str, loss: LossCause, error: str) -> None:
        self.worker_losses[loss] += 1
        status = self._workers.pop(worker_id, None)
        if status is not None:
            self._gone = _add(self._gone, status)

    def worker_status(self, status: WorkerStatus) -> None:
        if status.worker_id in self._workers:
            self._workers[status.worker_id] = status
            self.peak_worker_bytes = max(self.peak_worker_bytes, status.memory_bytes)

    def tick(self, schedule: ShardSchedule) -> None:
        now = self._clock()
        if self._recent and now - self._recent[-1][0] < SAMPLE_EVERY_S:
            return
        self._recent.append((now, self.num_images))
        while now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    @property
    def num_images(self) -> int:
        """Images that the model did, also those of attempts that failed later.

        Workers tell now and then, so what is committed may be ahead of what they have told.
        """
        return max(self._total().images, self.counts.images_written)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._begin_s

    @property
    def images_per_s(self) -> float:
        """Over the last minute."""
        if len(self._recent) < 2:
            return 0.0
        (begin_s, before), (end_s, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end_s - begin_s) if end_s > begin_s else 0.0

    @property
    def model_wait_fraction(self) -> float:
        """Share of the time of the models in which they had no batch to work on."""
        total = self._total()
        whole_s = total.busy_s + total.starved_s
        return total.starved_s / whole_s if whole_s else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end, by bytes where sizes are known and by shards otherwise."""
        share = (
            self.bytes_done / self.num_bytes if self.num_bytes else self.num_done / max(1, self.num_shards)
        )
        if not share:
            return None
        return self.elapsed_s * (1 - share) / share

    def summary(self) -> dict[str, Any]:
        """Totals in JSON form."""
        return {
            "shards_done": self.num_done,
            "shards_failed": len(self.failures),
            "shards_incomplete": self.num_incomplete,
            "retries": self.num_retries,
            "samples_read": self.counts.samples_read,
            "documents_written": self.counts.documents_written,
            "samples_quarantined": dict(sorted(self.quarantined.items())),
            "images_read": self.counts.images_read,
            "images_written": self.counts.images_written,
            "images_dropped": dict(self.counts.images_dropped),
            "notes": dict(self.counts.notes),
            "source_bytes": self.bytes_done,
            "output_bytes": self.output_bytes,
            "seconds": round(self.elapsed_s, 3),
            "images_per_s": round(self.counts.images_written / max(self.elapsed_s, 1e-9), 2),
            "model_wait_fraction": round(self.model_wait_fraction, 4),
            "worker_losses": dict(self.worker_losses),
            "peak_worker_bytes": self.peak_worker_bytes,
            "decoded_by_helpers": self._total().helped,
        }

    def line(self) -> str:
        """One log line."""
        eta = "?" if self.eta_s is None else f"{self.eta_s:.0f}"
        return (
            f"shards={self.num_done}/{self.num_shards} failed={len(self.failures)} images={self.num_images} "
            f"images/s={self.images_per_s:.1f} model_wait={self.model_wait_fraction:.2f} "
            f"quarantined={self.counts.num_quarantined} workers={self.num_workers} eta_s={eta}"
        )

    def _total(self) -> WorkerStatus:
        total = self._gone
        for status in self._workers.values():
            if status is not None:
                total = _add(total, status)
        return total


def _add(one: WorkerStatus, other: WorkerStatus) -> WorkerStatus:
    return WorkerStatus(
        one.worker_id,
        images=one.images + other.images,
        busy_s=one.busy_s + other.busy_s,
        starved_s=one.starved_s + other.starved_s,
        helped=one.helped + other.helped,
    )


class ProgressDisplay(RunListener):
    """Shows a ``RunProgress``: live on a terminal, as log lines elsewhere. A context manager."""

    def __init__(self, progress: RunProgress, console: Console | None = None) -> None:
        self._progress = progress
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._next_line_s = time.monotonic() + LOG_EVERY_S
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __enter__(self) -> Self:
        if self._live is not None:
            before = sys.stderr
            self._live.start()  # puts a stream in place of stderr that writes above the display
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                    self._streams.append((handler, handler.setStream(sys.stderr)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
            self._live.stop()
        for handler, stream in self._streams:
            handler.setStream(stream)

    def tick(self, schedule: ShardSchedule) -> None:
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + LOG_EVERY_S
            logger.info("%s", self._progress.line())

    def shard_done(self, report: ShardReport) -> None:
        done, quarantined = report.counts.documents_written, report.counts.num_quarantined
        logger.debug(
            "shard=%s documents=%d quarantined=%d s=%.1f", report.name, done, quarantined, report.seconds
        )
        if not report.source_complete:
            reasons = ", ".join(report.counts.notes)
            what = "nothing of it could be read" if is_unread(report.counts) else "only a part was read"
            logger.warning(
                "shard=%s its source %s is damaged (%s): %s", report.name, report.source, reasons, what
            )

    def shard_retried(self, name: str, error: str) -> None:
        logger.warning("shard=%s will be tried again: %s", name, error)

    def shard_set_aside(self, failure: ShardFailure) -> None:
        logger.error(
            "shard=%s set aside after %d attempts: %s", failure.name, failure.attempts, failure.error
        )

    def worker_joined(self, worker_id: str) -> None:
        logger.debug("worker=%s joined", worker_id)

    def worker_lost(self, worker_id: str, loss: LossCause, error: str) -> None:
        logger.warning("worker=%s %s: %s", worker_id, loss, error)

    def render(self) -> Table:
        """The display: one figure a line."""
        progress = self._progress
        table = Table.grid(padding=(0, 2))
        num_over = progress.num_done + len(progress.failures)
        table.add_row("shards", ProgressBar(max(1, progress.num_shards), num_over, width=BAR_WIDTH))
        is_over = num_over >= progress.num_shards
        spent, eta = _duration(progress.elapsed_s), progress.eta_s
        time_left = f"in {spent}" if is_over else f"{'?' if eta is None else _duration(eta)} to go"
        table.add_row("", f"{progress.num_done:,} of {progress.num_shards:,}, {time_left}")
        table.add_row("images", f"{progress.num_images:,}, {progress.images_per_s:,.1f} images/s")
        workers = "1 worker" if progress.num_workers == 1 else f"{progress.num_workers} workers"
        wait = f"{progress.model_wait_fraction:.0%} of the time without data"
        table.add_row("model", f"{workers}, {wait}")
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in progress.quarantined.most_common(6))
        table.add_row("quarantined", f"{progress.counts.num_quarantined:,}{': ' * bool(reasons)}{reasons}")
        for failure in progress.failures[-MAX_FAILURES_SHOWN:]:
            table.add_row(Text("failed", "red"), Text(f"{failure.name}: {failure.error}"[:160]))
        return table


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
