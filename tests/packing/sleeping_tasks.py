"""A driver whose two workers sleep at their tasks, having left their process ids: to be killed by a test."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.packing.run_tasks import Executor


@dataclass(frozen=True)
class SleepingTask:
    output: Path


class SleepingWorker:
    def run(self, task: SleepingTask) -> None:
        (task.output.parent / f"pid-{os.getpid()}").touch()
        time.sleep(300)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    Executor(num_workers=2).run("sleep", SleepingWorker, [SleepingTask(folder / name) for name in "ab"])
