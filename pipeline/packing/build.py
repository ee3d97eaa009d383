"""Build a packed set: render, shuffle, plan the windows, pack; resumable, in bounded memory, deterministic.

    sources ──render──▶ items by bucket ──shuffle──▶ items in order ──plan──▶ windows ──pack──▶ packed shards

Every arrow is a set of independent tasks (``run_tasks``), every box a set of files under ``OUTPUT/.build``
that is removed when the packed shards are complete. Weighted sources get further epochs as they run dry. What
became of every document is counted: read = packed + refused by reason + left over by a partial epoch. So is
every id: rendered = packed + left over.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.packing.build_report import REPORT_NAME, SourceReport, read_counts, write_report
from pipeline.packing.duplicates import (
    ROWS_PER_PARTITION,
    DigestTask,
    DuplicateList,
    PartitionTask,
    find_duplicates,
)
from pipeline.packing.inputs import Chunk, check_codebooks, list_chunks
from pipeline.packing.mix import SourceRanDryError, Supply, WindowPlan, plan_windows
from pipeline.packing.mixture_file import Mixture
from pipeline.packing.pack_task import PackPlan, PackTask, pack_shard
from pipeline.packing.render_task import WHOLE_EPOCH, Renderer, RenderTask, Segment, vocabulary_layout
from pipeline.packing.run_tasks import Executor
from pipeline.packing.segments import (
    SourceEstimate,
    estimate_sources,
    first_segments,
    max_ids_of,
    next_segment,
)
from pipeline.packing.shuffle_task import ShuffledSource, ShuffleTask, shuffle_bucket
from schemas.atomic_write import TEMPORARY_PREFIX, write_atomically
from schemas.mixture import MixtureError
from schemas.packed_shard import FILE_PATTERN, PackedShardFooter, SourceCounts, TextTokenizerIdentity

logger = logging.getLogger(__name__)

WORK_FOLDER = ".build"
COUNTS_NAME = "counts.json"


class BuildError(ValueError):
    """An output folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class _RenderWorker:
    renderer: Renderer

    def run(self, task: RenderTask | DigestTask) -> None:
        if isinstance(task, DigestTask):
            self.renderer.run_digests(task)
        else:
            self.renderer.run(task)


@dataclass(frozen=True)
class _FileWorker:
    plan: PackPlan | None = None

    def run(self, task: ShuffleTask | PartitionTask | PackTask) -> None:
        if isinstance(task, ShuffleTask):
            shuffle_bucket(task)
        elif isinstance(task, PartitionTask):
            find_duplicates(task)
        else:
            assert self.plan is not None
            pack_shard(self.plan, task)


def _make_render_worker(mixture: Mixture) -> _RenderWorker:
    return _RenderWorker(Renderer(mixture))


class Build:
    """One build of a mixture into a folder."""

    def __init__(self, mixture: Mixture, output: Path, executor: Executor | None = None) -> None:
        self.mixture, self.output = mixture, output
        self.work = output / WORK_FOLDER
        self.executor = executor or Executor()
        self.identity = mixture.identity()
        self._chunks: list[list[Chunk]] = []
        self._estimates: list[SourceEstimate] = []
        self._duplicates: Path | None = None

    def run(self) -> dict[str, Any]:
        """Build whatever is missing; the report's content.

        Raises:
            MixtureError: if a source cannot be read or a source gives nothing.
            BuildError: if the folder holds another build.
            TaskFailedError: if a task failed; run again to continue.
        """
        if finished := self._find_finished():
            return finished
        with self.executor.session():
            return self._run()

    def _run(self) -> dict[str, Any]:
        codebooks = check_codebooks(self.mixture)
        self._claim_folder()
        self._chunks = [list_chunks(self.mixture, source) for source in self._sources]
        self._estimates = estimate_sources(self.mixture, self._chunks)
        if self.mixture.config.deduplicate:
            self._duplicates = self._find_duplicates()
        segments = [first_segments(self.mixture.config, self._estimates, source) for source in self._sources]
        windows = self._plan(segments)
        self._pack(windows, segments, codebooks)
        reports = self._source_reports(segments, windows)
        report = write_report(self.mixture, self.output, self.identity, list(reports), self._overlaps())
        shutil.rmtree(self.work)
        return report

    @property
    def _sources(self) -> range:
        return range(len(self.mixture.config.sources))

    # --- the folder ---

    def _find_finished(self) -> dict[str, Any] | None:
        path = self.output / REPORT_NAME
        if not path.exists():
            return None
        report: dict[str, Any] = json.loads(path.read_bytes())
        if report["mixture"] != self.identity:
            raise BuildError(_differences(self.output, report["components"], self.mixture.components))
        shutil.rmtree(self.work, ignore_errors=True)  # of a build that was killed while it cleaned up
        logger.info("output=%s is complete, nothing to do", self.output)
        return report

    def _claim_folder(self) -> None:
        if self.output.exists() and not self.output.is_dir():
            raise BuildError(f"{self.output}: is no folder; name another output")
        marker = self.work / "mixture.json"
        components = self.mixture.components
        if marker.exists():
            started = json.loads(marker.read_bytes())
            if started != components:
                raise BuildError(_differences(self.output, started, components))
            return
        if present := sorted(self.output.glob(FILE_PATTERN)):
            raise BuildError(
                f"{self.output}: holds {present[0].name} of an unknown build; use another folder"
            )
        write_atomically(marker, json.dumps(components, indent=1).encode())

    # --- rendering and shuffling ---

    def _folder(self, source: int, segment: Segment) -> Path:
        name = f"{source:03d}-{self.mixture.config.sources[source].name}"
        return self.work / name / f"epoch-{segment.epoch:04d}-{segment.start:07d}-{segment.stop:07d}"

    def _render(self, wanted: Sequence[tuple[int, Segment]]) -> None:
        """Render and shuffle segments of sources, unless that is done.

        The rendered files are removed when the shuffled ones are complete.
        """
        left = [item for item in wanted if not (self._folder(*item) / COUNTS_NAME).exists()]
        renders = {item: self._render_tasks(*item) for item in left}
        worker = partial(_make_render_worker, self.mixture)
        self.executor.run("render", worker, [task for tasks in renders.values() for task in tasks])
        shuffles = {item: self._shuffle_tasks(*item, renders[item]) for item in left}
        self.executor.run("shuffle", _FileWorker, [task for tasks in shuffles.values() for task in tasks])
        for item, tasks in renders.items():
            counts = read_counts([task.output for task in tasks])
            write_atomically(self._folder(*item) / COUNTS_NAME, json.dumps(counts).encode())
            for task in tasks:
                task.output.unlink()

    def _render_tasks(self, source: int, segment: Segment) -> list[RenderTask]:
        folder = self._folder(source, segment)
        return [
            RenderTask(chunk, segment, folder / f"rendered-{index:06d}.arrow", self._duplicates)
            for index, chunk in enumerate(self._chunks[source])
        ]

    def _shuffle_tasks(
        self, source: int, segment: Segment, renders: Sequence[RenderTask]
    ) -> list[ShuffleTask]:
        """Buckets of the size that the mixture asks for, now that the ids are counted."""
        rendered, folder = tuple(task.output for task in renders), self._folder(source, segment)
        num_ids = read_counts(rendered)["ids"]
        bucket_ids = self.mixture.config.packing.bucket_ids * segment.num_buckets
        splits = max(1, round(num_ids / bucket_ids))
        fine = replace(segment, num_buckets=segment.num_buckets * splits)
        return [
            ShuffleTask(bucket, rendered, folder / f"shuffled-{bucket:06d}.arrow", fine, splits)
            for bucket in range(fine.num_buckets)
        ]

    def _counts(self, source: int, segments: Sequence[Segment]) -> Counter[str]:
        """What became of the documents of rendered segments."""
        total: Counter[str] = Counter()
        for segment in segments:
            total.update(json.loads((self._folder(source, segment) / COUNTS_NAME).read_bytes()))
        return total

    def _shuffled_paths(self, source: int, segment: Segment) -> list[str]:
        """Complete once the segment's counts are written."""
        return sorted(map(str, self._folder(source, segment).glob("shuffled-*.arrow")))

    def _find_duplicates(self) -> Path:
        folder = self.work / "duplicates"
        chunks = [chunk for chunks in self._chunks for chunk in chunks]
        num_partitions = 1 + sum(chunk.num_rows for chunk in chunks) // ROWS_PER_PARTITION
        digests = [
            DigestTask(chunk, num_partitions, folder / f"digests-{index:06d}.arrow")
            for index, chunk in enumerate(chunks)
        ]
        self.executor.run("digest", partial(_make_render_worker, self.mixture), digests)
        paths = tuple(task.output for task in digests)
        partitions = [
            PartitionTask(partition, paths, folder / f"duplicates-{partition:06d}.arrow")
            for partition in range(num_partitions)
        ]
        self.executor.run("find duplicates", _FileWorker, partitions)
        return folder

    def _overlaps(self) -> list[dict[str, Any]] | None:
        """Documents of a source that equal an earlier one, by the source of that; None if nobody looked."""
        if self._duplicates is None:
            return None
        names = [source.name for source in self.mixture.config.sources]
        overlaps = sorted(DuplicateList(self._duplicates).overlaps().items())
        return [
            {"source": names[source], "first_in": names[first], "documents": number}
            for (source, first), number in overlaps
        ]

    # --- planning and packing ---

    def _plan(self, segments: list[list[Segment]]) -> WindowPlan:
        """The windows; adds further segments of sources that run dry to ``segments``."""
        config = self.mixture.config
        while True:
            self._render([(source, segment) for source in self._sources for segment in segments[source]])
            supplies = [self._supply(source, segments[source]) for source in self._sources]
            try:
                plan = plan_windows(
                    supplies,
                    config.packing.window_documents,
                    max_ids=max_ids_of(config),
                    count_documents=config.weight_unit == "documents",
                )
            except SourceRanDryError as dry:
                segments[dry.source].append(
                    next_segment(segments[dry.source][-1], self._estimates[dry.source])
                )
                continue
            if not plan.num_windows:
                raise MixtureError(
                    f"output: {max_ids_of(config)} ids are fewer than the first document has; ask for more"
                )
            return plan

    def _supply(self, source: int, segments: list[Segment]) -> Supply:
        """What a source has rendered so far."""
        config = self.mixture.config.sources[source]
        counts = self._counts(source, segments)
        items = self._shuffled(source, segments)
        if not len(items) and segments[-1].stop == WHOLE_EPOCH:
            refused = ", ".join(
                f"{name.removeprefix('refused:')} {count}"
                for name, count in counts.items()
                if name.startswith("refused:")
            )
            raise MixtureError(
                f"source {config.name}: no document is left of {counts['documents_in']}"
                f" ({refused}); check its template, filters and text_field"
            )
        if config.weight is not None:
            return Supply(items, config.weight, is_endless=True)
        return Supply(items, max(1, counts["ids"]), is_endless=False)

    def _shuffled(self, source: int, segments: list[Segment]) -> ShuffledSource:
        paths = [path for segment in segments for path in self._shuffled_paths(source, segment)]
        return ShuffledSource([Path(path) for path in paths])

    def _pack(self, windows: WindowPlan, segments: list[list[Segment]], codebooks: dict[str, str]) -> None:
        per_shard = self.mixture.config.packing.windows_per_shard
        num_shards = -(-windows.num_windows // per_shard)
        plan = PackPlan(
            windows,
            tuple(
                tuple(path for segment in segments[source] for path in self._shuffled_paths(source, segment))
                for source in self._sources
            ),
            self.mixture.files,
            self._footer(num_shards, codebooks),
        )
        tasks = [
            PackTask(
                index,
                index * per_shard,
                min((index + 1) * per_shard, windows.num_windows),
                self.output / f"packed-{index:05d}.parquet",
            )
            for index in range(num_shards)
        ]
        self.executor.run("pack", partial(_FileWorker, plan), tasks)
        for abandoned in self.output.glob(f"{TEMPORARY_PREFIX}*"):  # by workers that were killed
            abandoned.unlink(missing_ok=True)

    def _footer(self, num_shards: int, codebooks: dict[str, str]) -> PackedShardFooter:
        tokenizer, config = self.mixture.load_tokenizer(), self.mixture.config
        return PackedShardFooter(
            seq_length=config.seq_length,
            vocabulary=vocabulary_layout(self.mixture, tokenizer),
            tokenizer=TextTokenizerIdentity(
                tokenizer.name, tokenizer.sha256, tokenizer.bos_id, tokenizer.eos_id
            ),
            mixture=self.identity,
            seed=config.seed,
            shard_index=0,
            num_shards=num_shards,
            num_sequences=0,
            sources=tuple(SourceCounts(source.name) for source in config.sources),
            codebooks=codebooks,
        )

    def _source_reports(self, segments: list[list[Segment]], windows: WindowPlan) -> Iterator[SourceReport]:
        for source in self._sources:
            counts = self._counts(source, segments[source])
            num_taken = int(windows.bounds[-1, source])
            left_over, ids_left_over = self._shuffled(source, segments[source]).count_left(num_taken)
            name = self.mixture.config.sources[source].name
            yield SourceReport(name, float(windows.shares[source]), dict(counts), left_over, ids_left_over)


def _differences(output: Path, before: Any, now: Any) -> str:
    ours, theirs = dict(_flatten(now)), dict(_flatten(before))
    changed = [
        f"{name}: {theirs.get(name, '(absent)')} there, {ours.get(name, '(absent)')} now"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    listed = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
    return f"{output}: holds another build ({listed}); use another folder, or remove this one"


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in pairs:
            yield from _flatten(item, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
