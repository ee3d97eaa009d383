"""What a tokenization run has to do: the source shards of its input, and what is done of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.counted import counted
from pipeline.encode_shard import ReadDocuments
from pipeline.inputs import expand_inputs
from pipeline.shard_task import ShardFailure, ShardTask
from pipeline.sources.tar_source import TarSource, check_are_tars
from pipeline.storage import open_folder
from pipeline.token_dataset import MANIFEST_NAME, DatasetManifest, TokenDataset, check_same
from pipeline.tokenize_config import TokenizeConfig
from pipeline.worker_tools import tokenizer_fingerprint
from schemas.fingerprint import Fingerprint
from tokenizer.hub import NotDownloadedError


@dataclass(frozen=True, kw_only=True)
class TokenizeJob:
    """What one kind of input adds to the common configuration."""

    kind: str
    """pairs, videos, interleaved or chats."""
    read: ReadDocuments
    """Gives the documents of a source shard; travels to the workers, so it must be picklable."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the source that decide rows, in JSON form; kept in the manifest."""
    decoder: str = "pipeline.decode:decode_task"
    frames_per_task: int = 1
    video_options: str = ""
    """Which frames of a clip: `video_frames.FrameSampling` as JSON."""

    @property
    def settings_section(self) -> str:
        """Under which the flags of the source's settings stand: ``pairs`` in ``--pairs.caption-field``."""
        return next(iter(self.settings), self.kind)


@dataclass(frozen=True)
class RunPlan:
    """What there is to do."""

    tasks: list[ShardTask]
    """All source shards of the input, done or not."""
    to_do: list[ShardTask]
    num_done: int
    failed_before: dict[str, ShardFailure]
    """Set aside by earlier runs, and not tried again by this one."""
    manifest: DatasetManifest
    output: str
    has_tokenizer: bool = True
    """False only for a dry run: its weights are not on this machine, so the fingerprint is not known."""

    @property
    def bytes_to_do(self) -> int | None:
        sizes = [task.source_bytes for task in self.to_do]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def lines(self) -> list[str]:
        """For a human."""
        size = "unknown size" if self.bytes_to_do is None else f"{self.bytes_to_do / 1e6:,.1f} MB"
        fingerprint = self.manifest.fingerprint.hex
        if not self.has_tokenizer:
            fingerprint = "not checked: the tokenizer is not on this machine yet; a run downloads it"
        return [
            f"output       {self.output}",
            f"kind         {self.manifest.kind}",
            f"fingerprint  {fingerprint}",
            f"input        {counted(len(self.tasks), 'source shard')}: {self.num_done} done, "
            f"{len(self.failed_before)} failed before, {len(self.to_do)} to do ({size})",
        ]


def make_plan(config: TokenizeConfig, job: TokenizeJob) -> RunPlan:
    """Find the source shards and what is done of them; nothing is written.

    Raises:
        ValueError, FileNotFoundError: naming the setting that is wrong, or what of the output does not fit.
    """
    shards = expand_inputs(config.input)[: config.limit]
    if isinstance(job.read, TarSource):
        check_are_tars(shards)
    tasks = [ShardTask(shard.name, shard.url, shard.num_bytes) for shard in shards]
    has_tokenizer = True
    try:
        fingerprint = tokenizer_fingerprint(config.encoder("cpu"), local_files_only=config.dry_run)
    except NotDownloadedError:
        if not config.dry_run:
            raise
        fingerprint, has_tokenizer = Fingerprint({"tokenizer": config.tokenizer}), False
    manifest = DatasetManifest(
        job.kind,
        fingerprint,
        {"on_bad_image": config.on_bad_image, **_limits(config), **job.settings},
    )
    folder = open_folder(config.output)
    done: set[str] = set()
    failed: dict[str, ShardFailure] = {}
    if folder.exists(MANIFEST_NAME):
        dataset = TokenDataset.open(folder)
        if has_tokenizer:
            check_same(folder, manifest, dataset.manifest)
        if not config.overwrite:
            done, failed = dataset.done(), dataset.failures()
            dataset.check_sources(tasks, done)
    skipped = {} if config.retry_failed else failed
    to_do = [task for task in tasks if task.name not in done and task.name not in skipped]
    names = {task.name for task in tasks}
    return RunPlan(
        tasks,
        to_do,
        len(names & done),
        {name: failure for name, failure in skipped.items() if name in names - done},
        manifest,
        config.output,
        has_tokenizer,
    )


def _limits(config: TokenizeConfig) -> dict[str, Any]:
    return {
        "max_pixels": config.max_pixels,
        "min_side": config.min_side,
        "max_aspect_ratio": config.max_aspect_ratio,
    }
