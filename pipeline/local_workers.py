"""Shards in threads of this process: for one machine without Ray, for debugging and for tests.

Nothing can be isolated here: a crash of this process is the end of the run (the next one resumes), and a
thread that hangs cannot be ended, so that a stall ends the run with an error.
"""

import queue
import threading
import time

from pipeline.shard_driver import PoolError, WorkerEvent, WorkerJoined, WorkerLost
from pipeline.shard_task import ShardTask
from pipeline.shard_worker import ShardWorker
from pipeline.worker_tools import WorkerTools

WORKER_ID = "local"
STATUS_EVERY_S = 1.0


class LocalWorkers:
    """A ``WorkerPool`` of one worker, with a thread for each shard in flight."""

    def __init__(self, tools: WorkerTools, num_threads: int) -> None:
        self._worker = ShardWorker(tools)
        self._events: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self._tasks: queue.SimpleQueue[ShardTask | None] = queue.SimpleQueue()
        self._events.put(WorkerJoined(WORKER_ID, num_threads))
        self._next_status_s = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"shard-{index}", daemon=True)
            for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def poll(self, timeout_s: float, num_wanted: int) -> list[WorkerEvent]:
        events: list[WorkerEvent] = []
        try:
            events.append(self._get(timeout_s))
            while True:
                events.append(self._get(0))
        except queue.Empty:
            pass
        if time.monotonic() >= self._next_status_s:
            self._next_status_s = time.monotonic() + STATUS_EVERY_S
            events.append(self._worker.status(WORKER_ID))
        return events

    def _get(self, timeout_s: float) -> WorkerEvent:
        event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
        if isinstance(event, WorkerLost):
            raise PoolError(event.error)
        return event

    def assign(self, worker_id: str, task: ShardTask) -> None:
        self._tasks.put(task)

    def end_worker(self, worker_id: str) -> None:
        raise PoolError(
            "a shard does not move any more (--stall-timeout), and a thread cannot be ended from outside: "
            "run with Ray (--num-actors 1), which replaces the worker"
        )

    def close(self) -> None:
        self._worker.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            event = self._worker.encode(WORKER_ID, task)
            if event is None:
                return
            self._events.put(event)
            if isinstance(event, WorkerLost):
                return
