"""Workers that only pretend, on a clock that only pretends: for tests and for `benchmarks/scale.py`.

They drive the real scheduler and the real driver loop without a process or a second of waiting.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.shard_driver import (
    ShardDone,
    ShardFailed,
    WorkerEvent,
    WorkerJoined,
    WorkerLost,
    WorkerStatus,
)
from pipeline.shard_schedule import LossCause
from pipeline.shard_task import ShardReport, ShardTask
from schemas.token_shard import ShardCounts

ONE_DOCUMENT = ShardCounts(samples_read=1, documents_written=1, images_read=1, images_written=1)


@dataclass(frozen=True)
class Fate:
    """What becomes of one attempt at a shard."""

    seconds: float = 1.0
    kind: str = "done"
    """done, error, crash, node, model, decoders, stall (never ends, never moves)."""


class SimulatedWorkers:
    """A ``WorkerPool``; a lost worker is replaced by a new one a moment later."""

    def __init__(
        self, num_workers: int, capacity: int, fate: Callable[[ShardTask, int], Fate], start_s: float = 0.5
    ) -> None:
        self.now_s = 0.0
        self.attempts: dict[str, int] = {}
        self.alone: dict[str, bool] = {}
        """By shard, whether its last attempt had the worker to itself when it began."""
        self._capacity = capacity
        self._fate = fate
        self._start_s = start_s
        self._ids = itertools.count()
        self._sequence = itertools.count()
        self._queue: list[tuple[float, int, WorkerEvent]] = []
        self._hands: dict[str, set[str]] = {}
        for _ in range(num_workers):
            self._join()

    def clock(self) -> float:
        return self.now_s

    def poll(self, timeout_s: float, num_wanted: int) -> list[WorkerEvent]:
        events: list[WorkerEvent] = []
        limit = self.now_s + timeout_s
        if self._queue and self._queue[0][0] <= limit:
            self.now_s = max(self.now_s, self._queue[0][0])
            while self._queue and self._queue[0][0] <= self.now_s:
                events += self._happen(heapq.heappop(self._queue)[2])
        else:
            self.now_s = limit
        return events

    def assign(self, worker_id: str, task: ShardTask) -> None:
        hands = self._hands[worker_id]
        assert len(hands) < self._capacity, "more than the worker can hold"
        assert all(task.name not in others for others in self._hands.values()), "a shard in two hands"
        self.alone[task.name] = not hands
        hands.add(task.name)
        self.attempts[task.name] = self.attempts.get(task.name, 0) + 1
        fate = self._fate(task, self.attempts[task.name])
        at_s = self.now_s + fate.seconds
        match fate.kind:
            case "done":
                report = ShardReport(task.name, task.source, ONE_DOCUMENT, True, None, 1, fate.seconds)
                self._push(at_s, ShardDone(worker_id, report))
            case "error":
                self._push(at_s, ShardFailed(worker_id, task.name, "OSError: bad luck"))
            case "crash":
                self._push(at_s, WorkerLost(worker_id, LossCause.CRASHED, "killed by signal 11"))
            case "node":
                self._push(at_s, WorkerLost(worker_id, LossCause.NODE_LOST, "the node is gone"))
            case "model":
                self._push(at_s, WorkerLost(worker_id, LossCause.MODEL_FAILED, "out of memory"))
            case "decoders":
                self._push(at_s, WorkerLost(worker_id, LossCause.DECODERS_FAILED, "they do not start"))

    def end_worker(self, worker_id: str) -> None:
        del self._hands[worker_id]
        self._join()

    def close(self) -> None:
        pass

    def _push(self, at_s: float, event: WorkerEvent) -> None:
        heapq.heappush(self._queue, (at_s, next(self._sequence), event))

    def _join(self) -> None:
        worker_id = f"worker-{next(self._ids)}"
        self._push(self.now_s + self._start_s, WorkerJoined(worker_id, self._capacity))

    def _happen(self, event: WorkerEvent) -> list[WorkerEvent]:
        if isinstance(event, WorkerJoined):
            self._hands[event.worker_id] = set()
            return [event]
        hands = self._hands.get(event.worker_id)
        if hands is None:  # of a worker that died before
            return []
        if isinstance(event, WorkerLost):
            self.end_worker(event.worker_id)
        elif isinstance(event, ShardDone):
            hands.discard(event.report.name)
            moves = dict.fromkeys(hands, int(self.now_s * 1000))
            return [event, WorkerStatus(event.worker_id, moves, images=1)]
        else:
            hands.discard(event.name)
        return [event]


def tasks_named(count: int) -> list[ShardTask]:
    return [ShardTask(f"{index:06}", f"{index:06}.tar", 1000) for index in range(count)]


def uniform_fates(seed: int, low_s: float, high_s: float) -> Callable[[ShardTask, int], Fate]:
    """Attempts that all succeed, in a random time."""
    rng = np.random.default_rng(seed)
    return lambda task, attempt: Fate(float(rng.uniform(low_s, high_s)))
