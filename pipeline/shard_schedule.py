"""Who does which shard next, and what becomes of shards whose worker failed. No Ray, no clock.

Work per event is constant, or logarithmic in the number of retries that wait: a run of a million shards costs
the driver a million small steps, whatever the number of samples.

Blame. A shard whose reading or writing raised an error is at fault by itself. When a worker dies, every shard
in its hands is a suspect, and the guilty one cannot be told; suspects are therefore repeated one at a time,
each alone on a worker. The innocent then succeed, and a shard that kills its worker again is at fault without
doubt. A node that is lost (preempted, powered off), a model that fails (a batch holds images of several
shards) or decode processes that do not start are nobody's fault, up to a generous bound that catches a shard
that takes whole nodes down.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.shard_task import ShardFailure, ShardTask

MAX_EXCUSED_LOSSES = 20
"""Workers that a shard may lose, blamed for none, to nodes that are lost, models and decoding that fail."""
MAX_RETRY_DELAY_S = 120.0


class LossCause(StrEnum):
    """Why a worker is gone."""

    CRASHED = "crashed"
    STALLED = "stalled"
    NODE_LOST = "node_lost"
    MODEL_FAILED = "model_failed"
    """The model gave an error on a batch: out of GPU memory, a GPU that is broken."""
    DECODERS_FAILED = "decoders_failed"
    """Its decode processes do not start any more: out of memory, a library that is gone."""


@dataclass
class _ShardState:
    """A shard that is not finished and has a past."""

    task: ShardTask
    attempts: int = 0
    num_excused_losses: int = 0
    must_be_alone: bool = False
    history: list[str] = field(default_factory=list)


@dataclass
class _Worker:
    capacity: int
    running: dict[str, ShardTask] = field(default_factory=dict)
    suspect: ShardTask | None = None
    """Waits until the worker's hands are empty."""
    is_alone: bool = False
    """Runs a suspect: takes nothing else until that is done."""


class ShardSchedule:
    """State of one run.

    Args:
        tasks: what is to be done, in the order of preference.
        max_attempts: attempts after which a shard is set aside.
        retry_delay_s: pause before the second attempt; doubled each time, at most two minutes.
    """

    def __init__(
        self,
        tasks: Iterable[ShardTask],
        *,
        max_attempts: int = 3,
        retry_delay_s: float = 2.0,
    ) -> None:
        self._waiting = deque(tasks)
        self._max_attempts = max_attempts
        self._retry_delay_s = retry_delay_s
        self._retries: list[tuple[float, int, str]] = []
        self._num_retries = 0
        self._states: dict[str, _ShardState] = {}
        self._workers: dict[str, _Worker] = {}
        self._parked: dict[str, None] = {}
        """Workers with a suspect that waits for them."""
        self.num_tasks = len(self._waiting)
        self.num_done = 0
        self.num_running = 0
        self.failures: dict[str, ShardFailure] = {}

    @property
    def is_finished(self) -> bool:
        return self.num_done + len(self.failures) == self.num_tasks

    @property
    def num_unassigned(self) -> int:
        return self.num_tasks - self.num_done - len(self.failures) - self.num_running

    def add_worker(self, worker_id: str, capacity: int) -> None:
        """A worker joins; ``capacity`` is how many shards it works on at a time."""
        self._workers[worker_id] = _Worker(capacity)

    def running(self, worker_id: str) -> dict[str, ShardTask]:
        """Shards in the hands of a worker, by name."""
        return self._workers[worker_id].running

    def capacity(self, worker_id: str) -> int:
        return self._workers[worker_id].capacity

    def next_for(self, worker_id: str, now_s: float) -> ShardTask | None:
        """The next shard for a worker, or None if it should have no more just now."""
        worker = self._workers[worker_id]
        if worker.is_alone or len(worker.running) >= worker.capacity:
            return None
        if not worker.running and self._parked:
            worker.suspect = worker.suspect or self._take_over()
        if worker.suspect is None and self._is_retry_for(worker, now_s):
            state = self._states[heapq.heappop(self._retries)[2]]
            if not state.must_be_alone:
                return self._give(worker, state.task)
            worker.suspect = state.task
        if worker.suspect is not None:
            if worker.running:
                self._parked[worker_id] = None
                return None
            self._parked.pop(worker_id, None)
            task, worker.suspect, worker.is_alone = worker.suspect, None, True
            return self._give(worker, task)
        return self._give(worker, self._waiting.popleft()) if self._waiting else None

    def _is_retry_for(self, worker: _Worker, now_s: float) -> bool:
        """Whether a retry is due, and no other worker could have it alone at once."""
        if not self._retries or self._retries[0][0] > now_s:
            return False
        if not worker.running or not self._states[self._retries[0][2]].must_be_alone:
            return True
        return all(other.running for other in self._workers.values())

    def _take_over(self) -> ShardTask | None:
        """A suspect that waits until a busy worker's hands are empty."""
        other = self._workers[self._parked.popitem()[0]]
        task, other.suspect = other.suspect, None
        return task

    def succeeded(self, worker_id: str, name: str) -> None:
        self._take(worker_id, name)
        self._states.pop(name, None)
        self.num_done += 1

    def failed(self, worker_id: str, name: str, error: str, now_s: float) -> None:
        """The attempt ended with an error of the shard itself."""
        state = self._state(self._take(worker_id, name))
        state.attempts += 1
        self._retry_or_set_aside(state, error, now_s)

    def worker_lost(
        self,
        worker_id: str,
        loss: LossCause,
        error: str,
        now_s: float,
        culprits: frozenset[str] = frozenset(),
    ) -> list[str]:
        """A worker is gone; its shards are repeated or set aside.

        Args:
            worker_id: which.
            loss: why.
            error: one line.
            now_s: the time.
            culprits: names of the shards at fault where that is known (those that stalled).

        Returns:
            Names of the shards it had.
        """
        worker = self._workers.pop(worker_id)
        self._parked.pop(worker_id, None)
        self.num_running -= len(worker.running)
        if worker.suspect is not None:
            self._push_retry(self._state(worker.suspect), now_s, delay_s=0.0)
        for name, task in worker.running.items():
            state = self._state(task)
            if culprits and name not in culprits:
                self._push_retry(state, now_s, delay_s=0.0)
                continue
            state.must_be_alone = loss is not LossCause.STALLED
            if (
                loss in (LossCause.NODE_LOST, LossCause.MODEL_FAILED, LossCause.DECODERS_FAILED)
                and state.num_excused_losses < MAX_EXCUSED_LOSSES
            ):
                state.num_excused_losses += 1
                state.must_be_alone = state.num_excused_losses > MAX_EXCUSED_LOSSES // 2
                self._push_retry(state, now_s, delay_s=0.0)
                continue
            state.attempts += 1
            self._retry_or_set_aside(state, error, now_s)
        return list(worker.running)

    def _state(self, task: ShardTask) -> _ShardState:
        return self._states.setdefault(task.name, _ShardState(task))

    def _take(self, worker_id: str, name: str) -> ShardTask:
        worker = self._workers[worker_id]
        task = worker.running.pop(name)
        self.num_running -= 1
        worker.is_alone &= bool(worker.running)
        return task

    def _give(self, worker: _Worker, task: ShardTask) -> ShardTask:
        worker.running[task.name] = task
        self.num_running += 1
        return task

    def _retry_or_set_aside(self, state: _ShardState, error: str, now_s: float) -> None:
        state.history.append(error)
        if state.attempts < self._max_attempts:
            delay_s = self._retry_delay_s * 2 ** (state.attempts - 1)
            self._push_retry(state, now_s, min(delay_s, MAX_RETRY_DELAY_S))
            return
        task = self._states.pop(state.task.name).task
        self.failures[task.name] = ShardFailure(task.name, task.source, error, state.attempts, state.history)

    def _push_retry(self, state: _ShardState, now_s: float, delay_s: float) -> None:
        self._num_retries += 1
        heapq.heappush(self._retries, (now_s + delay_s, self._num_retries, state.task.name))
