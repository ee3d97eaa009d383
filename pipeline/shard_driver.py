"""The loop that hands out shards to workers and hears what became of them.

What a worker is, is the business of a ``WorkerPool``: Ray actors (``ray_engine``), threads of this process
(``local_workers``), or simulated ones (``benchmarks/scale.py``). The loop itself is the same.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.shard_schedule import LossCause, ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport, ShardTask

logger = logging.getLogger(__name__)

POLL_S = 0.5
STALL_CHECK_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    worker_id: str
    capacity: int
    """Shards it works on at a time."""


@dataclass(frozen=True, slots=True)
class ShardDone:
    worker_id: str
    report: ShardReport


@dataclass(frozen=True, slots=True)
class ShardFailed:
    worker_id: str
    name: str
    error: str
    """One line."""
    is_fatal: bool = False
    """No shard can succeed: the disk is full, the output cannot be written."""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    worker_id: str
    loss: LossCause
    error: str


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker is doing; sent now and then."""

    worker_id: str
    moves: dict[str, int] = field(default_factory=dict)
    """By shard in flight, a number that grows while the shard moves."""
    images: int = 0
    """Encoded since the worker started."""
    busy_s: float = 0.0
    starved_s: float = 0.0
    """Time of the model with and without work."""
    memory_bytes: int = 0
    helped: int = 0
    """Pictures that helpers on other nodes decoded."""


WorkerEvent = WorkerJoined | ShardDone | ShardFailed | WorkerLost | WorkerStatus


class WorkerPool(Protocol):
    """Those who tokenize."""

    def poll(self, timeout_s: float, num_wanted: int) -> list[WorkerEvent]:
        """What happened, waiting ``timeout_s`` at most; ``num_wanted`` is how many shards are not finished.

        Raises:
            PoolError: if there can be no worker at all.
        """

    def assign(self, worker_id: str, task: ShardTask) -> None:
        """Give a shard to a worker."""

    def end_worker(self, worker_id: str) -> None:
        """End a worker that hangs, by force; no WorkerLost follows."""

    def close(self) -> None:
        """End all workers; shards in flight are abandoned."""


class PoolError(RuntimeError):
    """There are no workers and there will be none; the message says why."""


class FatalShardError(RuntimeError):
    """An error that every shard would meet; the message names it."""


class RunListener:
    """Someone who wants to know, a progress display say; overrides what it listens to."""

    def shard_done(self, report: ShardReport) -> None: ...
    def shard_retried(self, name: str, error: str) -> None: ...
    def shard_set_aside(self, failure: ShardFailure) -> None: ...
    def worker_joined(self, worker_id: str) -> None: ...
    def worker_lost(self, worker_id: str, loss: LossCause, error: str) -> None: ...
    def worker_status(self, status: WorkerStatus) -> None: ...
    def tick(self, schedule: ShardSchedule) -> None:
        """Called at least every second or so."""


@dataclass
class _Movement:
    """When a shard in flight was last seen to move."""

    num_moves: int
    at_s: float


class ShardDriver:
    """Runs a schedule on a pool.

    Args:
        schedule: the shards.
        pool: the workers.
        listeners: told of every event, in order.
        stall_timeout_s: a worker with a shard that has not moved for so long is ended and replaced.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        schedule: ShardSchedule,
        pool: WorkerPool,
        listeners: list[RunListener],
        *,
        stall_timeout_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schedule = schedule
        self._pool = pool
        self._listeners = listeners
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._hungry: dict[str, None] = {}  # a set that keeps its order
        self._movements: dict[str, dict[str, _Movement]] = {}
        self._next_stall_check_s = 0.0

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Work until every shard is done or set aside; False if ``should_stop`` ended it before.

        Raises:
            PoolError, FatalShardError: going on makes no sense.
        """
        while not self._schedule.is_finished:
            if should_stop():
                return False
            wanted = self._schedule.num_unassigned + self._schedule.num_running
            for event in self._pool.poll(POLL_S, wanted):
                self._handle(event)
            self._hand_out()
            self._end_stalled_workers()
            for listener in self._listeners:
                listener.tick(self._schedule)
        return True

    def _handle(self, event: WorkerEvent) -> None:
        match event:
            case ShardDone():
                self._schedule.succeeded(event.worker_id, event.report.name)
                self._is_free(event.worker_id, event.report.name)
                self._tell(lambda listener: listener.shard_done(event.report))
            case ShardFailed():
                self._shard_failed(event)
            case WorkerJoined():
                self._schedule.add_worker(event.worker_id, event.capacity)
                self._hungry[event.worker_id] = None
                self._movements[event.worker_id] = {}
                self._tell(lambda listener: listener.worker_joined(event.worker_id))
            case WorkerLost():
                self._worker_lost(event.worker_id, event.loss, event.error)
            case WorkerStatus():
                self._saw_movement(event)
                self._tell(lambda listener: listener.worker_status(event))

    def _hand_out(self) -> None:
        for worker_id in list(self._hungry):
            while True:
                now = self._clock()
                task = self._schedule.next_for(worker_id, now)
                if task is None:
                    break
                self._movements[worker_id][task.name] = _Movement(0, now)
                self._pool.assign(worker_id, task)
            if len(self._schedule.running(worker_id)) >= self._schedule.capacity(worker_id):
                del self._hungry[worker_id]

    def _is_free(self, worker_id: str, name: str) -> None:
        self._movements[worker_id].pop(name, None)
        self._hungry[worker_id] = None

    def _shard_failed(self, event: ShardFailed) -> None:
        if event.is_fatal:
            raise FatalShardError(event.error)
        self._schedule.failed(event.worker_id, event.name, event.error, self._clock())
        self._is_free(event.worker_id, event.name)
        self._tell_failed(event.name, event.error)

    def _worker_lost(
        self, worker_id: str, loss: LossCause, error: str, culprits: frozenset[str] = frozenset()
    ) -> None:
        names = self._schedule.worker_lost(worker_id, loss, error, self._clock(), culprits)
        self._hungry.pop(worker_id, None)
        self._movements.pop(worker_id, None)
        self._tell(lambda listener: listener.worker_lost(worker_id, loss, error))
        for name in names:
            self._tell_failed(name, error)

    def _tell_failed(self, name: str, error: str) -> None:
        failure = self._schedule.failures.get(name)
        for listener in self._listeners:
            if failure is not None:
                listener.shard_set_aside(failure)
            else:
                listener.shard_retried(name, error)

    def _tell(self, message: "Callable[[RunListener], None]") -> None:
        for listener in self._listeners:
            message(listener)

    def _saw_movement(self, status: WorkerStatus) -> None:
        movements = self._movements.get(status.worker_id, {})
        for name, num_moves in status.moves.items():
            movement = movements.get(name)
            if movement is not None and num_moves != movement.num_moves:
                movement.num_moves, movement.at_s = num_moves, self._clock()

    def _end_stalled_workers(self) -> None:
        now = self._clock()
        if now < self._next_stall_check_s:
            return
        self._next_stall_check_s = now + min(STALL_CHECK_EVERY_S, self._stall_timeout_s / 4)
        for worker_id, movements in list(self._movements.items()):
            stalled = frozenset(
                name for name, moved in movements.items() if now - moved.at_s > self._stall_timeout_s
            )
            if stalled:
                error = f"no progress for {self._stall_timeout_s:g} s (--stall-timeout)"
                logger.warning("worker=%s shards=%s %s", worker_id, ",".join(sorted(stalled)), error)
                self._pool.end_worker(worker_id)
                self._worker_lost(worker_id, LossCause.STALLED, error, stalled)
