"""Figures of a run are sums of what the workers say, and are shown on terminals and in logs."""

import io
import logging
import sys

import pytest
from rich.console import Console

from pipeline.progress import ProgressDisplay, RunProgress
from pipeline.shard_driver import ShardDriver, WorkerStatus
from pipeline.shard_schedule import LossCause, ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport
from schemas.token_shard import ShardCounts
from tests.pipeline.simulated_workers import Fate, SimulatedWorkers, tasks_named


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def report(name: str, quarantined: int = 0, num_bytes: int = 1000) -> ShardReport:
    counts = ShardCounts(
        samples_read=10,
        documents_written=10 - quarantined,
        samples_quarantined={"image_truncated": quarantined} if quarantined else {},
        images_read=10,
        images_written=10 - quarantined,
        images_dropped={"image_truncated": quarantined} if quarantined else {},
    )
    return ShardReport(name, f"{name}.tar", counts, True, num_bytes, 500, 1.0)


def test_totals_rate_and_time_to_go() -> None:
    clock = Clock()
    progress = RunProgress(num_shards=4, num_bytes=4000, clock=clock)
    schedule = ShardSchedule(tasks_named(4))
    progress.worker_joined("a")
    for second in range(11):
        progress.worker_status(
            WorkerStatus("a", images=second * 50, busy_s=second * 0.8, starved_s=second * 0.2)
        )
        progress.tick(schedule)
        clock.now_s += 1.0
    progress.shard_done(report("0", quarantined=3))
    clock.now_s = 120.0
    assert progress.images_per_s == pytest.approx(50.0)
    assert progress.model_wait_fraction == pytest.approx(0.2)
    assert progress.eta_s == pytest.approx(60.0), "a quarter of the bytes took 20 s"
    assert "shards=1/4" in progress.line()
    assert progress.summary()["samples_quarantined"] == {"image_truncated": 3}


def test_images_of_a_lost_worker_still_count() -> None:
    progress = RunProgress(1)
    progress.worker_joined("a")
    progress.worker_status(WorkerStatus("a", images=30))
    progress.worker_lost("a", LossCause.CRASHED, "killed")
    progress.worker_joined("b")
    progress.worker_status(WorkerStatus("b", images=12))
    assert progress.num_images == 42
    assert progress.num_workers == 1


def test_the_display_shows_figures_and_failures() -> None:
    progress = RunProgress(4)
    progress.shard_done(report("0", quarantined=2))
    progress.shard_set_aside(ShardFailure("1", "1.tar", "OSError: bad sector", 3))
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with ProgressDisplay(progress, console) as display:
        display.tick(ShardSchedule([]))
    text = console.file.getvalue()
    for piece in ("1 of 4", "image_truncated 2", "OSError: bad sector"):
        assert piece in text


def test_log_lines_stand_above_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        with ProgressDisplay(RunProgress(4), Console(stderr=True, force_terminal=True, width=80)) as display:
            display.tick(ShardSchedule([]))
            logging.getLogger().warning("one line")
        assert handler.stream is terminal
    finally:
        logging.getLogger().removeHandler(handler)
    above, below = terminal.getvalue().split("one line")
    assert above.endswith("\x1b[2K"), "the display is erased before the line"
    assert below.lstrip().startswith("shards"), "and drawn again below it"


def test_images_are_those_committed_where_workers_have_not_told_yet() -> None:
    progress = RunProgress(1)
    progress.worker_joined("a")
    progress.worker_status(WorkerStatus("a", images=3))
    progress.shard_done(report("0"))
    assert progress.num_images == 10


def test_without_a_terminal_there_are_log_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.LOG_EVERY_S", 0.0)
    caplog.set_level(logging.INFO)
    progress = RunProgress(20)
    display = ProgressDisplay(progress, Console(file=io.StringIO()))
    pool = SimulatedWorkers(
        2, 1, lambda task, attempt: Fate(1.0, "error" if task.name == "000003" else "done")
    )
    schedule = ShardSchedule(tasks_named(20), max_attempts=2)
    with display:
        assert ShardDriver(schedule, pool, [progress, display], clock=pool.clock).run()
    lines = [record.getMessage() for record in caplog.records]
    assert any("shards=19/20 failed=1" in line for line in lines)
    assert any("shard=000003 set aside after 2 attempts" in line for line in lines)
