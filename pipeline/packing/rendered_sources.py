"""What is rendered and shuffled of the sources of a mixture, as files by range of an epoch."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.packing.build_report import read_counts
from pipeline.packing.epoch_range import WHOLE_EPOCH, EpochRange
from pipeline.packing.inputs import Chunk
from pipeline.packing.mixture_file import Mixture
from pipeline.packing.render_task import Renderer, RenderTask
from pipeline.packing.run_tasks import Executor, FunctionWorker
from pipeline.packing.shuffle_task import ShuffledSource, ShuffleTask, shuffle_bucket
from schemas.atomic_write import write_atomically

COUNTS_NAME = "counts.json"


class RenderedSources:
    """What is rendered, in shuffled order, of the sources of a mixture.

    Args:
        folder: gets a folder for each range, which is complete once the counts of its documents are there.
        chunks: of each source.
        duplicates: folder of a `DuplicateList`, whose documents are left out.
        ranges: of each source, what ``render`` shall render; more may be appended.
    """

    def __init__(
        self,
        mixture: Mixture,
        folder: Path,
        chunks: Sequence[Sequence[Chunk]],
        duplicates: Path | None,
        ranges: list[list[EpochRange]],
    ) -> None:
        self._mixture, self._folder, self._chunks = mixture, folder, chunks
        self._duplicates, self.ranges = duplicates, ranges

    def render(self, executor: Executor) -> None:
        """Render and shuffle all ranges, unless that is done.

        The rendered files are removed when the shuffled ones are complete.
        """
        wanted = [(source, one) for source, ranges in enumerate(self.ranges) for one in ranges]
        left = [item for item in wanted if not (self._folder_of(*item) / COUNTS_NAME).exists()]
        renders = {item: self._render_tasks(*item) for item in left}
        tasks = [task for tasks in renders.values() for task in tasks]
        executor.run("render", partial(Renderer, self._mixture), tasks)
        shuffles = [task for item in left for task in self._shuffle_tasks(*item, renders[item])]
        executor.run("shuffle", partial(FunctionWorker, shuffle_bucket), shuffles)
        for item, tasks in renders.items():
            counts = read_counts([task.output for task in tasks])
            write_atomically(self._folder_of(*item) / COUNTS_NAME, json.dumps(counts).encode())
            for task in tasks:
                task.output.unlink()

    def counts(self, source: int) -> Counter[str]:
        """What became of the documents of a source."""
        return self._counts(source, self.ranges[source])

    def counts_of_one_epoch(self, source: int) -> Counter[str]:
        """The same of its first epoch alone; empty unless that is rendered to its end."""
        first = [one for one in self.ranges[source] if one.epoch == 0]
        return self._counts(source, first) if first[-1].stop == WHOLE_EPOCH else Counter()

    def _counts(self, source: int, ranges: Sequence[EpochRange]) -> Counter[str]:
        total: Counter[str] = Counter()
        for one in ranges:
            total.update(json.loads((self._folder_of(source, one) / COUNTS_NAME).read_bytes()))
        return total

    def paths(self, source: int) -> tuple[str, ...]:
        """Files of the shuffled order of a source."""
        folders = (self._folder_of(source, one) for one in self.ranges[source])
        return tuple(path for folder in folders for path in sorted(map(str, folder.glob("shuffled-*.arrow"))))

    def items(self, source: int) -> ShuffledSource:
        """Items of a source in shuffled order."""
        return ShuffledSource([Path(path) for path in self.paths(source)])

    def _folder_of(self, source: int, epoch_range: EpochRange) -> Path:
        name = f"{source:03d}-{self._mixture.config.sources[source].name}"
        bounds = f"{epoch_range.start:07d}-{epoch_range.stop:07d}"
        return self._folder / name / f"epoch-{epoch_range.epoch:04d}-{bounds}"

    def _render_tasks(self, source: int, epoch_range: EpochRange) -> list[RenderTask]:
        folder = self._folder_of(source, epoch_range)
        return [
            RenderTask(chunk, epoch_range, folder / f"rendered-{index:06d}.arrow", self._duplicates)
            for index, chunk in enumerate(self._chunks[source])
        ]

    def _shuffle_tasks(
        self, source: int, epoch_range: EpochRange, renders: Sequence[RenderTask]
    ) -> list[ShuffleTask]:
        """Buckets of the size that the mixture asks for, now that the ids are counted."""
        rendered, folder = tuple(task.output for task in renders), self._folder_of(source, epoch_range)
        num_ids = read_counts(rendered)["ids"]
        bucket_ids = self._mixture.config.packing.bucket_ids * epoch_range.num_buckets
        splits = max(1, round(num_ids / bucket_ids))
        fine = replace(epoch_range, num_buckets=epoch_range.num_buckets * splits)
        return [
            ShuffleTask(bucket, rendered, folder / f"shuffled-{bucket:06d}.arrow", fine, splits)
            for bucket in range(fine.num_buckets)
        ]
