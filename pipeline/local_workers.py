"""Shards in threads of this process: for one machine without Ray, for debugging and for tests.

Nothing can be isolated here: a crash of this process is the end of the run (the next one resumes), and a
thread that hangs cannot be ended, so that a stall ends the run with an error.
"""

import errno
import queue
import threading
import time
from collections.abc import Callable

from pipeline.batching_encoder import EncoderError
from pipeline.encode_shard import ShardCancelledError
from pipeline.shard_driver import (
    PoolError,
    ShardDone,
    ShardFailed,
    WorkerEvent,
    WorkerJoined,
    WorkerStatus,
)
from pipeline.shard_task import ShardTask
from pipeline.storage import OutputDeniedError
from pipeline.worker_tools import WorkerTools

WORKER_ID = "local"
STATUS_EVERY_S = 1.0
FATAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""No other shard can be written either."""


def one_line(error: BaseException) -> str:
    """An error with its type, for logs and reports."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def is_fatal(error: BaseException) -> bool:
    """Whether every other shard would meet the same error."""
    if isinstance(error, OutputDeniedError):
        return True
    if isinstance(error, PermissionError):
        # A source that may not be read concerns that shard alone; the folder concerns all.
        return ".tmp-" in str(error.filename or "")
    return isinstance(error, OSError) and error.errno in FATAL_ERRNOS


def fatal_message(error: BaseException, output: str) -> str:
    """One line with the remedy."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free space and run the same command again"
        return f"output {output}: the disk is full ({one_line(error)}); {remedy}"
    return f"output {output}: cannot be written ({one_line(error)})"


class ShardMoves:
    """Counts, by shard in flight, how often it moved."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def start(self, name: str) -> Callable[[], None]:
        """Begin to count for a shard; the result is called at each move."""
        self._counts[name] = 0

        def moved() -> None:
            self._counts[name] += 1

        return moved

    def end(self, name: str) -> None:
        self._counts.pop(name, None)

    def snapshot(self) -> dict[str, int]:
        return dict(self._counts)


class LocalWorkers:
    """A ``WorkerPool`` of one worker, with a thread for each shard in flight."""

    def __init__(self, tools: WorkerTools, num_threads: int) -> None:
        self._tools = tools
        self._moves = ShardMoves()
        self._events: queue.SimpleQueue[WorkerEvent | BaseException] = queue.SimpleQueue()
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
            events.append(worker_status(WORKER_ID, self._tools, self._moves))
        return events

    def _get(self, timeout_s: float) -> WorkerEvent:
        event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
        if isinstance(event, BaseException):
            raise PoolError(one_line(event)) from event
        return event

    def assign(self, worker_id: str, task: ShardTask) -> None:
        self._tasks.put(task)

    def end_worker(self, worker_id: str) -> None:
        raise PoolError(
            "a shard does not move any more (--stall-timeout), and a thread cannot be ended from outside: "
            "run with Ray (--num-actors 1), which replaces the worker"
        )

    def close(self) -> None:
        self._tools.shards.is_cancelled.set()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                report = self._tools.shards.encode(task, self._moves.start(task.name))
                self._events.put(ShardDone(WORKER_ID, report))
            except ShardCancelledError:
                return
            except EncoderError as error:
                self._events.put(error)
                return
            except Exception as error:
                fatal = is_fatal(error)
                message = fatal_message(error, self._tools.shards.folder.url) if fatal else one_line(error)
                self._events.put(ShardFailed(WORKER_ID, task.name, message, fatal))
            finally:
                self._moves.end(task.name)


def worker_status(worker_id: str, tools: WorkerTools, moves: ShardMoves) -> WorkerStatus:
    """What a worker is doing."""
    statistics = tools.shards.batching.statistics
    return WorkerStatus(
        worker_id,
        moves.snapshot(),
        statistics.images,
        statistics.busy_s,
        statistics.starved_s,
        resident_bytes(),
        tools.decoder.counts.helped,
    )


def resident_bytes() -> int:
    """Memory of this process, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096
    except (OSError, IndexError, ValueError):
        return 0
