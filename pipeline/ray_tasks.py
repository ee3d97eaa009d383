"""Independent tasks on a Ray cluster, a bounded number at a time; the result of each is the file it leaves.

What the tasks share is put into the object store once, and every worker process builds its tools from it
once. A lost node costs the tasks it had in hand: they are started again elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from pipeline.packing.run_tasks import Task, TaskFailedError, Worker

MAX_RETRIES = 3
"""Of a task whose process or node died; an exception of the task itself is not retried."""

_workers: dict[bytes, Worker] = {}
"""By the id of what they were made from; one process serves one stage at a time."""


def run_on_ray(factory: Callable[[], Worker], tasks: Sequence[Task], num_workers: int) -> Iterator[Task]:
    """Do the tasks, yielding each when it is done, in any order.

    Args:
        num_workers: tasks at a time; 0: as many as the cluster has CPUs.

    Raises:
        TaskFailedError: after the first failure, naming the task.
    """
    limit = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    shared, key = ray.put(factory), ray.get_runtime_context().get_job_id().encode()
    remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_run_task)
    waiting, pending = iter(tasks), dict[Any, Task]()
    while True:
        while len(pending) < limit and (task := next(waiting, None)) is not None:
            pending[remote.remote(shared, key + shared.binary(), task)] = task
        if not pending:
            return
        (done, *_), _ = ray.wait(list(pending), num_returns=1)
        task = pending.pop(done)
        try:
            ray.get(done)
        except RayTaskError as error:
            raise TaskFailedError(f"{task.output.name}: {error.cause}") from error
        except ray.exceptions.RayError as error:
            raise TaskFailedError(f"{task.output.name}: {error}; run the same command again") from error
        yield task


def _run_task(factory: Callable[[], Worker], key: bytes, task: Task) -> None:
    if key not in _workers:
        _workers.clear()
        _workers[key] = factory()
    _workers[key].run(task)
