"""Slow tasks that leave a mark of the Ray node that began them, so that a test can catch a node at work.

A module of its own: workers of a cluster import it by this name.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.packing.run_tasks import Executor, Task, Worker, WorkerFactory

TASK_S = 0.5
"""Long enough to be caught at work."""


class MarkingWorker:
    """Does a task slowly, having left a mark of the node that began it."""

    def __init__(self, make_worker: WorkerFactory, marks: Path) -> None:
        import ray

        self._worker: Worker = make_worker()
        self._marks = marks / ray.get_runtime_context().get_node_id()

    def run(self, task: Task) -> None:
        self._marks.mkdir(parents=True, exist_ok=True)
        (self._marks / f"{task.output.parent.parent.name}-{task.output.name}").touch()
        time.sleep(TASK_S)
        self._worker.run(task)


@dataclass(frozen=True)
class MarkingExecutor(Executor):
    """Runs tasks on Ray by marking workers."""

    marks: Path = Path()

    def run(self, name: str, factory: WorkerFactory, tasks: Sequence[Task]) -> None:
        super().run(name, partial(MarkingWorker, factory, self.marks), tasks)
