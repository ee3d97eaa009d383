"""Run independent tasks: in a plain loop, in processes of this machine, or on Ray.

A task writes one file, atomically, and is skipped where that file exists; so a run that was killed at any
moment is continued by starting it again, and the result does not depend on who ran what.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

TASKS_IN_FLIGHT_PER_WORKER = 2
PROGRESS_EVERY_S = 10.0


class Task(Protocol):
    """Something to do that leaves a file."""

    @property
    def output(self) -> Path: ...


class Worker(Protocol):
    """Does tasks; made once in every process, from what ``WorkerFactory`` holds."""

    def run(self, task: Any) -> None: ...


WorkerFactory = Callable[[], Worker]


@dataclass(frozen=True)
class FunctionWorker:
    """A worker that holds nothing but its function."""

    function: Callable[[Any], None]

    def run(self, task: Any) -> None:
        self.function(task)


class TaskFailedError(RuntimeError):
    """A task failed; the message names it and its error. What was finished stays."""


@dataclass(frozen=True)
class Executor:
    """Where tasks run."""

    num_workers: int = 1
    """Processes, or Ray tasks at a time; 1 without Ray: this process."""
    use_ray: bool = False

    @contextmanager
    def session(self) -> Iterator[None]:
        """Connection to the cluster, where there is one, for all stages within the block."""
        if not self.use_ray:
            yield
            return
        from pipeline.ray_cluster import connected

        with connected():
            yield

    def run(self, name: str, factory: WorkerFactory, tasks: Sequence[Task]) -> None:
        """Do all tasks whose output does not exist yet.

        Raises:
            TaskFailedError: after the first failure, naming the task.
        """
        left = [task for task in tasks if not task.output.exists()]
        logger.info("stage=%s tasks=%d done_before=%d", name, len(tasks), len(tasks) - len(left))
        if not left:
            return
        started, reported = time.monotonic(), time.monotonic()
        for num_done, _ in enumerate(self._run(factory, left), start=1):
            if time.monotonic() - reported > PROGRESS_EVERY_S:
                reported = time.monotonic()
                rate = num_done / (reported - started)
                logger.info(
                    "stage=%s done=%d/%d eta_s=%.0f", name, num_done, len(left), (len(left) - num_done) / rate
                )

    def _run(self, factory: WorkerFactory, tasks: list[Task]) -> Iterator[Task]:
        if self.use_ray:
            from pipeline.ray_tasks import run_on_ray

            yield from run_on_ray(factory, tasks, self.num_workers)
        elif self.num_workers == 1 or len(tasks) == 1:
            worker = factory()
            for task in tasks:
                _run_one(worker, task)
                yield task
        else:
            yield from _run_in_processes(factory, tasks, min(self.num_workers, len(tasks)))


def _run_in_processes(factory: WorkerFactory, tasks: list[Task], num_workers: int) -> Iterator[Task]:
    """Tasks in processes that are spawned: forked ones would inherit threads of pyarrow and tokenizers."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start_worker, (factory,)) as pool:
        waiting, pending = iter(tasks), dict[Future[None], Task]()
        try:
            while True:
                while len(pending) < num_workers * TASKS_IN_FLIGHT_PER_WORKER:
                    task = next(waiting, None)
                    if task is None:
                        break
                    pending[pool.submit(_run_in_worker, task)] = task
                if not pending:
                    return
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    task = pending.pop(future)
                    future.result()
                    yield task
        except BrokenProcessPool as error:
            raise TaskFailedError(
                "a worker process died (out of memory, or killed); run the same command again, it continues;"
                " fewer --workers or a smaller packing.bucket_ids need less memory"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: Worker | None = None


def _start_worker(factory: WorkerFactory) -> None:
    global _worker
    threading.Thread(target=_end_with_driver, daemon=True).start()
    _worker = factory()


def _end_with_driver() -> None:
    """A driver that is killed tells its workers nothing: they would wait for tasks for ever."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)


def _run_in_worker(task: Task) -> None:
    assert _worker is not None
    _run_one(_worker, task)


def _run_one(worker: Worker, task: Task) -> None:
    try:
        worker.run(task)
    except Exception as error:
        raise TaskFailedError(f"{task.output.name}: {type(error).__name__}: {error}") from error
