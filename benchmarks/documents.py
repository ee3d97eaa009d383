"""Interleaved documents: what token shards weigh beside the originals, and what the engine costs.

    python -m benchmarks.documents [--input DIR] [--decode-workers N] [--copies N]

Storage: bytes of the token shards over the bytes of the images and texts (not of the tars). Speed: images a
second end to end with the null tokenizer, over decoding the same images with the same decode processes and
nothing else; the model is left out, so that decoding is the limit. Both are measured as the difference of a
long and a short run, so that starting processes does not count. On a shared machine read the processor time.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.decode import DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.inputs import expand_inputs
from pipeline.read_shard import read_shard
from pipeline.run_plan import TokenizeJob, make_plan
from pipeline.sources.interleaved import InterleavedConfig, read_interleaved
from pipeline.sources.records import RawDocument
from pipeline.sources.tar_source import TarSource
from pipeline.tokenize_config import TokenizeConfig
from pipeline.tokenize_run import run_tokenization

SAMPLES = Path(__file__).parents[1] / "samples/documents"
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Time on the wall, and of the processors in this process and those it started."""

    wall: float
    processor: float

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.processor - other.processor)


@contextlib.contextmanager
def stopwatch() -> Iterator[list[Seconds]]:
    """Seconds that its block takes, in a list; processes started in it must have ended."""
    spent: list[Seconds] = []
    begin = os.times()
    yield spent
    end = os.times()
    processor = sum(end[:4]) - sum(begin[:4])
    spent.append(Seconds(end.elapsed - begin.elapsed, processor))


def documents(folder: str) -> list[RawDocument]:
    """All documents of a folder of shards."""
    items = [
        item for shard in expand_inputs([folder]) for item in read_interleaved(read_shard(shard), shard.name)
    ]
    return [item for item in items if isinstance(item, RawDocument)]


def decode_alone(images: list[bytes], num_workers: int) -> Seconds:
    """What decoding costs by itself."""
    with stopwatch() as spent, DecodePool(DecodePoolConfig(num_workers=num_workers)) as pool:
        for future in [pool.submit(DecodeTask(data)) for data in images]:
            future.exception()
    return spent[0]


def end_to_end(config: TokenizeConfig) -> tuple[Seconds, int]:
    """What a run in this process costs, and bytes written."""
    documents = partial(read_interleaved, on_bad_image="drop-image")
    job = TokenizeJob(kind="interleaved", read=TarSource(documents=documents, config=InterleavedConfig()))
    with stopwatch() as spent:
        outcome = run_tokenization(config, job, make_plan(config, job))
    return spent[0], outcome.progress.output_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", default=str(SAMPLES))
    parser.add_argument("--decode-workers", type=int, default=2)
    parser.add_argument(
        "--copies", type=int, default=8, help="copies of each shard, for a run of useful length"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = documents(options.input)
    text = sum(len(run.encode()) for document in found for run in _texts(document))
    images = [image.data for document in found for image in document.images]
    originals = text + sum(map(len, images))
    with tempfile.TemporaryDirectory() as folder:
        config = TokenizeConfig(
            input=(options.input,),
            output=f"{folder}/once",
            tokenizer="null",
            num_actors=0,
            decode_workers=options.decode_workers,
            on_bad_image="drop-image",
        )
        _, num_bytes = end_to_end(config)
        print(f"{len(found)} documents, {len(images)} images, {text} bytes of text, {originals} bytes in all")
        print(f"token shards {num_bytes} bytes: {100 * num_bytes / originals:.2f} % of images and texts")
        copies = Path(folder) / "copies"
        copies.mkdir()
        for shard in expand_inputs([options.input]):
            for copy in range(options.copies):
                shutil.copy(shard.url, copies / f"{copy:03d}-{shard.name}.tar")
        more = len(images) * (options.copies - 1)
        ratios = []
        for number in range(options.rounds):
            short, _ = end_to_end(dataclasses.replace(config, output=f"{folder}/short{number}"))
            few = decode_alone(images, options.decode_workers)
            many = decode_alone(images * options.copies, options.decode_workers)
            longer = dataclasses.replace(config, input=(str(copies),), output=f"{folder}/long{number}")
            alone, engine = many - few, end_to_end(longer)[0] - short
            print(
                f"images/s: decoding alone {more / alone.wall:.1f}, end to end {more / engine.wall:.1f}"
                f" ({alone.wall / engine.wall:.3f})"
            )
            print(
                f"processor ms an image: {1e3 * alone.processor / more:.2f}"
                f" and {1e3 * engine.processor / more:.2f} ({alone.processor / engine.processor:.3f})"
            )
            ratios.append((alone.wall / engine.wall, alone.processor / engine.processor))
    if options.json:
        wall, processor = (statistics.median(values) for values in zip(*ratios, strict=True))
        results = {"storage_fraction": num_bytes / originals, "wall": wall, "processor": processor}
        options.json.write_text(json.dumps(results | {"images": len(images), "documents": len(found)}))


def _texts(document: RawDocument) -> list[str]:
    return [segment.text for segment in document.segments if hasattr(segment, "text")]


if __name__ == "__main__":
    main()
