"""Build a packed set: render, shuffle, plan the windows, pack; resumable, in bounded memory, deterministic.

    sources ──render──▶ items by bucket ──shuffle──▶ items in order ──plan──▶ windows ──pack──▶ packed shards

Every arrow is a set of independent tasks (``run_tasks``), every box a set of files under ``OUTPUT/.build``
that is removed when the packed shards are complete. Weighted sources get further epochs as they run dry. What
became of every document is counted: read = packed + refused by reason + left over by a partial epoch. So is
every id: rendered = packed + left over.
"""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.packing.build_folder import WORK_FOLDER, claim_folder, find_finished
from pipeline.packing.build_report import SourceReport, write_report
from pipeline.packing.duplicates import (
    ROWS_PER_PARTITION,
    DigestTask,
    DuplicateList,
    PartitionTask,
    find_duplicates,
)
from pipeline.packing.inputs import Chunk, Codebooks, check_codebooks, list_chunks
from pipeline.packing.mix import SourceRanDryError, Supply, WindowPlan, plan_windows
from pipeline.packing.mixture_file import Mixture
from pipeline.packing.pack_task import PackPlan, PackTask, pack_shard
from pipeline.packing.ranges_to_render import first_ranges, max_ids_of, next_range
from pipeline.packing.render_task import Renderer, vocabulary_layout
from pipeline.packing.rendered_sources import RenderedSources
from pipeline.packing.run_tasks import Executor, FunctionWorker
from pipeline.packing.source_estimate import SourceEstimate, estimate_sources
from schemas.atomic_write import TEMPORARY_PREFIX
from schemas.mixture import MixtureError
from schemas.packed_shard import PackedShardFooter, SourceCounts, TextTokenizerIdentity


class Build:
    """One build of a mixture into a folder."""

    def __init__(self, mixture: Mixture, output: Path, executor: Executor | None = None) -> None:
        self.mixture, self.output = mixture, output
        self.work = output / WORK_FOLDER
        self.executor = executor or Executor()
        self.identity = mixture.identity()

    def run(self) -> dict[str, Any]:
        """Build whatever is missing; the report's content.

        Raises:
            MixtureError: if a source cannot be read or a source gives nothing.
            BuildError: if the folder holds another build.
            TaskFailedError: if a task failed; run again to continue.
        """
        if finished := find_finished(self.output, self.mixture):
            return finished
        with self.executor.session():
            return self._run()

    def _run(self) -> dict[str, Any]:
        codebooks = check_codebooks(self.mixture)
        claim_folder(self.output, self.mixture)
        config = self.mixture.config
        chunks = [list_chunks(self.mixture, source) for source in self._sources]
        estimates = estimate_sources(self.mixture, chunks)
        duplicates = self._find_duplicates(chunks) if config.deduplicate else None
        ranges = [first_ranges(config, estimates, source) for source in self._sources]
        rendered = RenderedSources(self.mixture, self.work, chunks, duplicates, ranges)
        windows = self._plan(rendered, estimates)
        self._pack(windows, rendered, codebooks)
        reports = list(self._source_reports(rendered, windows))
        report = write_report(self.mixture, self.output, reports, self._overlaps(duplicates))
        shutil.rmtree(self.work)
        return report

    @property
    def _sources(self) -> range:
        return range(len(self.mixture.config.sources))

    def _find_duplicates(self, chunks_of_sources: Sequence[Sequence[Chunk]]) -> Path:
        """Folder of a `DuplicateList` over all sources."""
        folder = self.work / "duplicates"
        chunks = [chunk for chunks in chunks_of_sources for chunk in chunks]
        num_partitions = 1 + sum(chunk.num_rows for chunk in chunks) // ROWS_PER_PARTITION
        digests = [
            DigestTask(chunk, num_partitions, folder / f"digests-{index:06d}.arrow")
            for index, chunk in enumerate(chunks)
        ]
        self.executor.run("digest", partial(Renderer, self.mixture), digests)
        paths = tuple(task.output for task in digests)
        partitions = [
            PartitionTask(partition, paths, folder / f"duplicates-{partition:06d}.arrow")
            for partition in range(num_partitions)
        ]
        self.executor.run("find duplicates", partial(FunctionWorker, find_duplicates), partitions)
        return folder

    def _overlaps(self, duplicates: Path | None) -> list[dict[str, Any]] | None:
        """Documents of a source that equal an earlier one, by the source of that; None if nobody looked."""
        if duplicates is None:
            return None
        names = [source.name for source in self.mixture.config.sources]
        overlaps = sorted(DuplicateList(duplicates).overlaps().items())
        return [
            {"source": names[source], "first_in": names[first], "documents": number}
            for (source, first), number in overlaps
        ]

    def _plan(self, rendered: RenderedSources, estimates: Sequence[SourceEstimate]) -> WindowPlan:
        """The windows; renders what they need, and more of sources that run dry."""
        config = self.mixture.config
        while True:
            rendered.render(self.executor)
            supplies = [
                self._supply(rendered, source, estimates[source].num_documents) for source in self._sources
            ]
            try:
                plan = plan_windows(
                    supplies,
                    config.packing.window_documents,
                    max_ids=max_ids_of(config),
                    count_documents=config.weight_unit == "documents",
                )
            except SourceRanDryError as dry:
                ranges = rendered.ranges[dry.source]
                ranges.append(next_range(ranges[-1], estimates[dry.source]))
                continue
            if not plan.num_windows:
                raise MixtureError(
                    f"output: {max_ids_of(config)} ids are fewer than the first document has; ask for more"
                )
            return plan

    def _supply(self, rendered: RenderedSources, source: int, num_documents: int) -> Supply:
        """What is rendered so far of a source, which has so many documents."""
        config = self.mixture.config.sources[source]
        counts, items = rendered.counts(source), rendered.items(source)
        if config.epochs is not None and not counts["documents_in"]:
            raise MixtureError(
                f"source {config.name}: epochs: {config.epochs} of its {num_documents:,} documents is not one"
                " document; ask for more, or leave the source out"
            )
        if config.epochs is not None:
            all_counts = rendered.counts_of_one_epoch(source) or counts
        else:
            all_counts = rendered.counts_of_one_epoch(source)  # empty while there is more to render
        if not len(items) and all_counts:
            refused = ", ".join(
                f"{name.removeprefix('refused:')} {count}"
                for name, count in all_counts.items()
                if name.startswith("refused:")
            )
            raise MixtureError(
                f"source {config.name}: no document is left of {all_counts['documents_in']}"
                f" ({refused}); check its template, filters and text_field"
            )
        if config.weight is not None:
            return Supply(items, config.weight, is_endless=True)
        return Supply(items, max(1, counts["ids"]), is_endless=False)

    def _pack(self, windows: WindowPlan, rendered: RenderedSources, codebooks: Codebooks) -> None:
        per_shard = self.mixture.config.packing.windows_per_shard
        num_shards = -(-windows.num_windows // per_shard)
        plan = PackPlan(
            windows,
            tuple(map(rendered.paths, self._sources)),
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
        self.executor.run("pack", partial(FunctionWorker, partial(pack_shard, plan)), tasks)
        for abandoned in self.output.glob(f"{TEMPORARY_PREFIX}*"):  # by workers that were killed
            abandoned.unlink(missing_ok=True)

    def _footer(self, num_shards: int, codebooks: Codebooks) -> PackedShardFooter:
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
            codebooks=codebooks.fingerprints,
            num_codes=codebooks.num_codes,
        )

    def _source_reports(self, rendered: RenderedSources, windows: WindowPlan) -> Iterator[SourceReport]:
        for source in self._sources:
            num_taken = int(windows.bounds[-1, source])
            left_over, ids_left_over = rendered.items(source).count_left(num_taken)
            name, share = self.mixture.config.sources[source].name, float(windows.shares[source])
            yield SourceReport(name, share, dict(rendered.counts(source)), left_over, ids_left_over)
