"""A whole tokenization run: from its plan to the report and the reasons for its exit status."""

import dataclasses
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.counted import counted
from pipeline.encode_shard import ShardSettings
from pipeline.local_workers import LocalWorkers
from pipeline.progress import ProgressDisplay, RunProgress
from pipeline.ray_cluster import settle_environment
from pipeline.run_log import RunLog
from pipeline.run_plan import RunPlan, TokenizeJob
from pipeline.shard_driver import FatalShardError, RunListener, ShardDriver, WorkerPool
from pipeline.shard_schedule import ShardSchedule
from pipeline.shard_task import ShardFailure, ShardReport
from pipeline.shard_worker import fatal_message, is_fatal
from pipeline.source_identity import identities_now
from pipeline.storage import open_folder
from pipeline.token_dataset import LOGS_FOLDER, REPORT_NAME, TokenDataset, changed_source
from pipeline.tokenize_config import TokenizeConfig
from pipeline.unused_input import first_refusal, why_unused
from pipeline.validate_shards import DatasetSummary, summarize
from pipeline.worker_tools import NULL_TOKENIZER, WorkerSetup, open_tools
from schemas.quarantine import Unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    progress: RunProgress
    plan: RunPlan
    was_stopped: bool
    folder: TokenDataset
    dataset: DatasetSummary | None
    """The whole folder, shards of earlier runs included; None if the run was stopped."""

    @property
    def failures(self) -> list[ShardFailure]:
        return [*self.progress.failures, *self.plan.failed_before.values()]

    def problems(self, strict: bool) -> list[str]:
        """One line for each reason not to exit with 0."""
        lines = [f"{failure.name} failed: {failure.error}" for failure in self.failures]
        if imbalance := self.progress.counts.imbalance():
            lines.append(f"conservation is violated: {imbalance}")
        if self.dataset is not None:
            if imbalance := self.dataset.counts.imbalance():
                lines.append(f"conservation is violated over all shards: {imbalance}")
            lines += [f"unreadable token shard: {error}" for error in self.dataset.unreadable]
            lines += self.changed()
            if not self.is_of_use():
                names = (task.name for task in self.plan.tasks)
                lines.append(f"not one sample could be used: {why_unused(self.folder, names)}")
        if strict and (damaged := self.damaged()):
            number = counted(len(damaged), "damaged source shard")
            lines.append(f"{number} (--strict): {', '.join(damaged[:5])}")
        return lines

    def is_of_use(self) -> bool:
        """Whether this input, done now or before, has a document; the rest of the folder does not count."""
        if not self.plan.tasks or self.dataset is None:
            return True
        with_documents = self.dataset.sources.keys() - self.dataset.empty
        return any(task.name in with_documents for task in self.plan.tasks)

    def damaged(self) -> list[str]:
        """Names of this input's shards whose source was damaged, in this run or before."""
        names = {task.name for task in self.plan.tasks}
        return [name for name in self.dataset.incomplete if name in names] if self.dataset else []

    def unread(self) -> list[str]:
        """Those of the damaged ones of which no sample came."""
        names = set(self.dataset.unread) if self.dataset else set()
        return [name for name in self.damaged() if name in names]

    def damage_of(self, name: str) -> str:
        """The name of a damaged shard with what its ledger says of the damage."""
        _, record = first_refusal(self.folder, name, Unit.SHARD)
        return f"{name} ({record.detail})" if record is not None and record.detail else name

    def changed(self) -> list[str]:
        """One line for each source shard that is not what it was when an earlier run tokenized it."""
        then = self.dataset.sources if self.dataset else {}
        new = {task.name for task in self.plan.to_do}
        before = [task for task in self.plan.tasks if task.name in then and task.name not in new]
        now = identities_now((task.source, task.source_bytes) for task in before)
        differences = [then[task.name].difference(its_now) for task, its_now in zip(before, now, strict=True)]
        return [
            changed_source(difference, task)
            for task, difference in zip(before, differences, strict=True)
            if difference is not None
        ]

    def report(self) -> dict[str, Any]:
        return {
            **self.progress.summary(),
            "was_stopped": self.was_stopped,
            "dataset": None if self.dataset is None else self.dataset.to_fields(),
            "shards_of_input": len(self.plan.tasks),
            "shards_done_before": self.plan.num_done,
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "fingerprint": self.plan.manifest.fingerprint.hex,
        }


def run_tokenization(
    config: TokenizeConfig, job: TokenizeJob, plan: RunPlan, should_stop: Callable[[], bool] = lambda: False
) -> RunOutcome:
    """Do what the plan says.

    Raises:
        OutputMismatchError: if another run claimed the output differently meanwhile.
        PoolError, FatalShardError: the run cannot go on; what is committed stays.
        OSError: the output cannot be written.
    """
    try:
        return _run(config, job, plan, should_stop)
    except OSError as error:
        if not is_fatal(error):
            raise
        raise FatalShardError(fatal_message(error, config.output)) from error


def _claim_output(output: str, plan: RunPlan) -> TokenDataset:
    try:
        return TokenDataset.claim(open_folder(output), plan.manifest)
    except OSError as error:
        if is_fatal(error):
            raise
        reason = error.strerror or error
        raise ValueError(f"--output {output}: cannot be written: {reason}; choose another folder") from error


def _run(
    config: TokenizeConfig, job: TokenizeJob, plan: RunPlan, should_stop: Callable[[], bool]
) -> RunOutcome:
    dataset = _claim_output(config.output, plan)
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    folder = dataset.folder
    folder.write(f"{LOGS_FOLDER}/{run_id}.config.json", _resolved(config, job, plan))
    progress = RunProgress(len(plan.to_do), plan.bytes_to_do)
    log = RunLog(folder, run_id)
    is_complete = True
    with ExitStack() as stack:
        stack.callback(log.close)
        if plan.to_do:
            display = stack.enter_context(ProgressDisplay(progress))
            failure_book = _FailureBook(dataset)
            listeners: list[RunListener] = [progress, failure_book, log, display]
            pool = stack.enter_context(open_pool(config, job, plan, listeners))
            schedule = ShardSchedule(plan.to_do, max_attempts=config.max_attempts)
            driver = ShardDriver(schedule, pool, listeners, stall_timeout_s=config.stall_timeout)
            is_complete = driver.run(should_stop)
    summary = summarize(dataset) if is_complete else None
    outcome = RunOutcome(progress, plan, not is_complete, dataset, summary)
    folder.write(REPORT_NAME, json.dumps({"run": run_id, **outcome.report()}, indent=1).encode() + b"\n")
    return outcome


def worker_setup(
    config: TokenizeConfig, job: TokenizeJob, plan: RunPlan, device: str, decode_workers: int | None
) -> WorkerSetup:
    """What each worker is told."""
    return WorkerSetup(
        read=job.read,
        settings=ShardSettings(
            kind=job.kind, fingerprint=plan.manifest.fingerprint, on_bad_image=config.on_bad_image
        ),
        encoder=config.encoder(device),
        output=config.output if "://" in config.output else os.path.abspath(config.output),
        num_decode_workers=decode_workers,
        decode_timeout_s=config.decode_timeout,
        decoder=job.decoder,
        frames_per_task=job.frames_per_task,
        video_options=job.video_options,
        folder=os.getcwd(),
    )


@contextmanager
def open_pool(
    config: TokenizeConfig, job: TokenizeJob, plan: RunPlan, listeners: list[RunListener]
) -> Iterator[WorkerPool]:
    """Workers for a run: Ray actors, or threads of this process with ``--num-actors 0``."""
    if config.num_actors == 0:
        cores = config.decode_workers if config.decode_workers is not None else os.cpu_count() or 1
        setup = worker_setup(config, job, plan, local_device(config), cores)
        with open_tools(setup) as tools:
            pool = LocalWorkers(tools, config.shards_in_flight)
            try:
                yield pool
            finally:
                pool.close()
        return
    settle_environment()
    from pipeline.ray_engine import open_ray_workers
    from pipeline.ray_metrics import RayMetrics

    def setup_for(device: str) -> WorkerSetup:
        return worker_setup(config, job, plan, device, config.decode_workers)

    with open_ray_workers(config, setup_for) as ray_pool:
        listeners.append(RayMetrics())
        yield ray_pool


def local_device(config: TokenizeConfig) -> str:
    """The GPU where there is one, ``cpu`` elsewhere and for the null tokenizer, which needs no torch."""
    if config.tokenizer == NULL_TOKENIZER:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class _FailureBook(RunListener):
    """Keeps ``_failed/`` in step with the run."""

    def __init__(self, dataset: TokenDataset) -> None:
        self._dataset = dataset
        self._known = set(dataset.failures())

    def shard_done(self, report: ShardReport) -> None:
        if report.name in self._known:
            self._dataset.forget_failure(report.name)
            self._known.discard(report.name)

    def shard_set_aside(self, failure: ShardFailure) -> None:
        self._dataset.set_aside(failure)
        self._known.add(failure.name)


def _resolved(config: TokenizeConfig, job: TokenizeJob, plan: RunPlan) -> bytes:
    fields = {
        "config": dataclasses.asdict(config),
        "kind": job.kind,
        "source_settings": dict(job.settings),
        "fingerprint": plan.manifest.fingerprint.hex,
        "num_source_shards": len(plan.tasks),
    }
    return json.dumps(fields, indent=1).encode() + b"\n"
