"""One JSON line for each shard of a run, as it happens.

On a local disk the lines are appended to one file. An object store cannot append: there the lines go into
numbered parts, a new one every few minutes.
"""

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipeline.shard_driver import RunListener
from pipeline.shard_schedule import LossCause, ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport
from pipeline.storage import Folder, LocalFolder
from pipeline.token_dataset import LOGS_FOLDER

FLUSH_EVERY_S = 1.0
PART_EVERY_S = 300.0


class RunLog(RunListener):
    """Writes the log of one run; ``close`` writes the last lines."""

    def __init__(self, folder: Folder, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._lines: list[str] = []
        self._num_parts = 0
        self._next_flush_s = 0.0

    def shard_done(self, report: ShardReport) -> None:
        self._add(report.to_fields())

    def shard_retried(self, name: str, error: str) -> None:
        self._add({"event": "shard_retried", "name": name, "error": error})

    def shard_set_aside(self, failure: ShardFailure) -> None:
        self._add({"event": "shard_failed", **asdict(failure)})

    def worker_joined(self, worker_id: str) -> None:
        self._add({"event": "worker_joined", "worker": worker_id})

    def worker_lost(self, worker_id: str, loss: LossCause, error: str) -> None:
        self._add({"event": "worker_lost", "worker": worker_id, "loss": loss, "error": error})

    def tick(self, schedule: ShardSchedule) -> None:
        if self._lines and time.monotonic() >= self._next_flush_s:
            self._flush()

    def close(self) -> None:
        if self._lines:
            self._flush()

    def _add(self, fields: dict[str, Any]) -> None:
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._lines.append(json.dumps({"time": when, **fields}) + "\n")

    def _flush(self) -> None:
        text = "".join(self._lines)
        if isinstance(self._folder, LocalFolder):
            path = self._folder.path / LOGS_FOLDER / f"{self._run_id}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="ascii") as file:
                file.write(text)
            self._next_flush_s = time.monotonic() + FLUSH_EVERY_S
        else:
            self._num_parts += 1
            name = f"{LOGS_FOLDER}/{self._run_id}-{self._num_parts:04}.jsonl"
            self._folder.write(name, text.encode("ascii"))
            self._next_flush_s = time.monotonic() + PART_EVERY_S
        self._lines.clear()
