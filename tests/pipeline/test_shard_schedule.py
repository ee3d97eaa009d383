"""Every shard is done or set aside, exactly once, whatever happens to the workers; the guilty are found."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shard_driver import (
    FatalShardError,
    PoolError,
    RunListener,
    ShardDriver,
    ShardFailed,
    WorkerEvent,
)
from pipeline.shard_schedule import MAX_EXCUSED_LOSSES, LossCause, ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport, ShardTask
from tests.pipeline.simulated_workers import Fate, SimulatedWorkers, tasks_named


class Notes(RunListener):
    """A listener that counts."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.set_aside: list[str] = []
        self.retried: list[str] = []
        self.losses: list[LossCause] = []
        self.num_workers = 0

    def shard_done(self, report: ShardReport) -> None:
        self.done.append(report.name)

    def shard_retried(self, name: str, error: str) -> None:
        self.retried.append(name)

    def shard_set_aside(self, failure: ShardFailure) -> None:
        self.set_aside.append(failure.name)

    def worker_joined(self, worker_id: str) -> None:
        self.num_workers += 1

    def worker_lost(self, worker_id: str, loss: LossCause, error: str) -> None:
        self.losses.append(loss)


def simulate(
    num_shards: int,
    fate: Callable[[ShardTask, int], Fate],
    num_workers: int = 3,
    capacity: int = 2,
    max_attempts: int = 3,
) -> tuple[Notes, SimulatedWorkers, ShardSchedule]:
    pool = SimulatedWorkers(num_workers, capacity, fate)
    schedule = ShardSchedule(tasks_named(num_shards), max_attempts=max_attempts)
    notes = Notes()
    driver = ShardDriver(schedule, pool, [notes], stall_timeout_s=30.0, clock=pool.clock)
    assert driver.run(should_stop=lambda: pool.now_s > 1e5), "the run hangs"
    return notes, pool, schedule


@given(
    seed=st.integers(0, 2**32 - 1),
    num_shards=st.integers(0, 40),
    num_workers=st.integers(1, 6),
    capacity=st.integers(1, 4),
    weights=st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5),
)
@settings(deadline=None, max_examples=150)
def test_every_shard_is_done_or_set_aside_once(
    seed: int, num_shards: int, num_workers: int, capacity: int, weights: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    share = np.array(weights) / sum(weights)

    def fate(task: ShardTask, attempt: int) -> Fate:
        kind = str(rng.choice(["done", "error", "crash", "node", "stall"], p=share))
        return Fate(float(rng.exponential(2.0)), kind)

    notes, pool, schedule = simulate(num_shards, fate, num_workers, capacity)
    assert sorted(notes.done + notes.set_aside) == [task.name for task in tasks_named(num_shards)]
    assert sorted(schedule.failures) == sorted(notes.set_aside)
    assert schedule.num_running == schedule.num_unassigned == 0
    assert all(count <= 3 + MAX_EXCUSED_LOSSES + 1 + 40 for count in pool.attempts.values())


def test_a_shard_that_kills_its_worker_is_found_and_the_innocent_are_done() -> None:
    def fate(task: ShardTask, attempt: int) -> Fate:
        return Fate(1.0, "crash" if task.name == "000007" else "done")

    notes, pool, schedule = simulate(60, fate)
    assert notes.set_aside == ["000007"]
    assert len(notes.done) == 59
    assert pool.attempts["000007"] == 3
    assert pool.alone["000007"], "the last attempts must have had the worker to themselves"
    assert len(schedule.failures["000007"].history) == 3


def test_several_killers_do_not_drag_others_down() -> None:
    killers = {f"{index:06}" for index in range(0, 40, 4)}

    def fate(task: ShardTask, attempt: int) -> Fate:
        return Fate(1.0 + 0.01 * int(task.name), "crash" if task.name in killers else "done")

    notes, _, _ = simulate(40, fate, num_workers=4, capacity=3)
    assert set(notes.set_aside) == killers


def test_an_error_that_passes_is_tried_again_after_a_pause() -> None:
    def fate(task: ShardTask, attempt: int) -> Fate:
        return Fate(1.0, "error" if task.name == "000000" and attempt < 3 else "done")

    notes, pool, _ = simulate(2, fate, num_workers=1, capacity=1)
    assert notes.set_aside == []
    assert notes.retried == ["000000", "000000"]
    assert pool.now_s == 0.5 + 3 * 1 + 2 + 4, "the start, three attempts, pauses of 2 s and 4 s"


@pytest.mark.parametrize("kind", ["node", "model", "decoders"])
def test_losing_nodes_is_nobodys_fault_within_reason(kind: str) -> None:
    notes, _, _ = simulate(6, lambda task, attempt: Fate(1.0, kind if attempt <= 8 else "done"))
    assert notes.set_aside == []


@pytest.mark.parametrize("kind", ["node", "model", "decoders"])
def test_a_shard_that_takes_every_node_down_is_set_aside_in_the_end(kind: str) -> None:
    def fate(task: ShardTask, attempt: int) -> Fate:
        return Fate(1.0, kind if task.name == "000002" else "done")

    notes, pool, _ = simulate(6, fate)
    assert notes.set_aside == ["000002"]
    assert pool.attempts["000002"] <= MAX_EXCUSED_LOSSES + 3


def test_a_worker_that_stalls_is_replaced_and_only_the_stalled_shard_is_blamed() -> None:
    def fate(task: ShardTask, attempt: int) -> Fate:
        return Fate(1.0, "stall" if task.name == "000001" else "done")

    notes, pool, schedule = simulate(12, fate, num_workers=2, capacity=2)
    assert notes.set_aside == ["000001"]
    assert notes.losses == [LossCause.STALLED] * 3
    assert "no progress for 30 s" in schedule.failures["000001"].error
    assert pool.now_s < 200


def test_a_suspect_gets_its_turn_while_there_is_other_work() -> None:
    order: list[str] = []

    def fate(task: ShardTask, attempt: int) -> Fate:
        order.append(task.name)
        return Fate(1.0, "crash" if task.name == "000000" and attempt == 1 else "done")

    notes, _, _ = simulate(400, fate, num_workers=2, capacity=2)
    assert notes.set_aside == []
    assert len(order) - 1 - order[::-1].index("000000") < 40, "the suspect waited for the end of the run"


def two_workers_and_a_suspect() -> ShardSchedule:
    """``busy`` has a shard in hand, ``idle`` none, and 000000 waits to be repeated alone."""
    schedule = ShardSchedule(tasks_named(2), retry_delay_s=0.0)
    for worker_id in ("busy", "dead"):
        schedule.add_worker(worker_id, 2)
    assert schedule.next_for("dead", 0.0) == tasks_named(2)[0]
    assert schedule.next_for("busy", 0.0) == tasks_named(2)[1]
    schedule.worker_lost("dead", LossCause.CRASHED, "signal 11", 0.0)
    return schedule


def test_a_suspect_does_not_wait_for_a_busy_worker_while_another_is_idle() -> None:
    schedule = two_workers_and_a_suspect()
    schedule.add_worker("idle", 2)
    assert schedule.next_for("busy", 1.0) is None
    assert schedule.next_for("idle", 1.0) == tasks_named(2)[0]


def test_an_idle_worker_takes_over_a_suspect_that_waits_for_a_busy_one() -> None:
    schedule = two_workers_and_a_suspect()
    assert schedule.next_for("busy", 1.0) is None
    schedule.add_worker("idle", 2)
    assert schedule.next_for("idle", 1.0) == tasks_named(2)[0]
    schedule.succeeded("busy", "000001")
    assert schedule.next_for("busy", 1.0) is None, "a shard in two hands"
    schedule.succeeded("idle", "000000")
    assert schedule.is_finished


def test_an_empty_schedule_is_finished() -> None:
    notes, _, schedule = simulate(0, lambda task, attempt: Fate())
    assert schedule.is_finished
    assert notes.done == []


def test_a_stop_leaves_the_rest_undone() -> None:
    pool = SimulatedWorkers(2, 2, lambda task, attempt: Fate(1.0))
    schedule = ShardSchedule(tasks_named(100))
    driver = ShardDriver(schedule, pool, [], clock=pool.clock)
    assert driver.run(should_stop=lambda: pool.now_s > 5) is False
    assert 0 < schedule.num_done < 100


class FullDisk(SimulatedWorkers):
    def _happen(self, event: WorkerEvent) -> list[WorkerEvent]:
        if isinstance(event, ShardFailed):
            return [ShardFailed(event.worker_id, event.name, "output /x: the disk is full", is_fatal=True)]
        return super()._happen(event)


def test_an_error_that_concerns_all_ends_the_run() -> None:
    pool = FullDisk(2, 1, lambda task, attempt: Fate(1.0, "error"))
    with pytest.raises(FatalShardError, match="the disk is full"):
        ShardDriver(ShardSchedule(tasks_named(9)), pool, [], clock=pool.clock).run()
    assert pool.attempts.keys() <= {"000000", "000001"}


class NoWorkers(SimulatedWorkers):
    def poll(self, timeout_s: float, num_wanted: int) -> list[WorkerEvent]:
        raise PoolError("workers do not start: FileNotFoundError: tokenizer")


def test_no_workers_at_all_is_an_error_and_no_hang() -> None:
    pool = NoWorkers(0, 1, lambda task, attempt: Fate())
    with pytest.raises(PoolError, match="workers do not start"):
        ShardDriver(ShardSchedule(tasks_named(1)), pool, [], clock=pool.clock).run()
