"""The engine end to end over its parts, decoding alone and the model alone; one large shard, many small.

    python -m benchmarks.tokenization [--input samples/pairs] [--images 1000] [--workers 1 2] [--gpu-at 0.7]

Decoding alone is a plain loop over `load_image`, one process per core: what the pipeline is held against. It
runs with the C library as it comes, and once more with the setting that makes decode processes keep their
memory (`kept`, `decode_process.KEPT_MEMORY`), so that what the engine gains by it is not taken for overlap.
All processes are started and warmed up before the clock runs. The speed of a shared machine changes from one
minute to the next: so every run of the engine stands between two of the loop, and is held against their mean;
of these ratios the medians are printed, with the lowest and highest.

``--gpu-at 0.7`` adds a stand-in for a model on a GPU: it takes no processor and runs at 0.7 of the rate of
decoding alone, measured just before.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.gpu_stand_in import GpuStandIn, open_tools_with
from pipeline.decode_process import KEPT_MEMORY
from pipeline.encode_shard import ShardSettings
from pipeline.local_workers import LocalWorkers
from pipeline.progress import RunProgress
from pipeline.shard_driver import ShardDriver
from pipeline.shard_schedule import ShardSchedule
from pipeline.shard_task import ShardTask
from pipeline.shard_worker import resident_bytes
from pipeline.sources.pairs import PairsConfig, read_pairs
from pipeline.sources.tar_source import TarSource
from pipeline.worker_tools import (
    NULL_TOKENIZER,
    EncoderConfig,
    WorkerSetup,
    WorkerTools,
    open_tools,
    tokenizer_fingerprint,
)
from tokenizer.preprocess import ImageError, PreprocessConfig, load_image

SUFFIXES = (".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Corpus:
    """Pictures, repeated to a wanted number."""

    images: list[tuple[str, bytes]]

    @classmethod
    def read(cls, folder: Path, num_images: int) -> "Corpus":
        found = []
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(SUFFIXES):
                        found.append((Path(member.name).suffix, tar.extractfile(member).read()))
        sound = [image for image in found if is_sound(image[1])]
        return cls([sound[index % len(sound)] for index in range(num_images)])

    def write(self, folder: Path, num_shards: int) -> list[ShardTask]:
        folder.mkdir(parents=True)
        tasks = []
        for shard in range(num_shards):
            path = folder / f"{shard:05}.tar"
            with tarfile.open(path, "w") as tar:
                for index in range(shard, len(self.images), num_shards):
                    suffix, data = self.images[index]
                    for name, content in ((f"{index:07}{suffix}", data), (f"{index:07}.txt", b"a caption")):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
            tasks.append(ShardTask(f"{num_shards}/{shard:05}", str(path), path.stat().st_size))
        return tasks


def is_sound(data: bytes) -> bool:
    try:
        load_image(data, PreprocessConfig())
    except ImageError:
        return False
    return True


def _decode_loop(connection: Connection, images: list[bytes]) -> None:
    """A process that decodes its share whenever it is told to."""
    config = PreprocessConfig()
    load_image(images[0], config)
    while connection.recv():
        for data in images:
            load_image(data, config)
        connection.send(True)


def children_cpu_us() -> float:
    """Processor time of the child processes that live, all their threads."""
    nanoseconds = 0
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError):  # a thread of ours that ended just now
            for pid in children.read_text().split():
                for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                    nanoseconds += int(thread.read_text().split()[0])
    return nanoseconds / 1e3


@contextmanager
def plain_decoders(
    corpus: Corpus, num_workers: int, environment: Mapping[str, str] | None = None
) -> Iterator[Callable[[], tuple[float, float]]]:
    """Decoding alone in a plain loop on each of ``num_workers`` cores: images/s, and microseconds of
    processor time an image.
    """
    context = multiprocessing.get_context("spawn")
    data = [data for _, data in corpus.images]
    ends, processes = [], []
    for index in range(num_workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_decode_loop, args=(theirs, data[index::num_workers]), daemon=True)
        with patch.dict(os.environ, environment or {}):
            process.start()
        ends.append(ours)
        processes.append(process)

    def measure() -> tuple[float, float]:
        begin, cpu_us = time.perf_counter(), children_cpu_us()
        for end in ends:
            end.send(True)
        for end in ends:
            end.recv()
        seconds = time.perf_counter() - begin
        return len(data) / seconds, (children_cpu_us() - cpu_us) / len(data)

    measure()
    yield measure
    for end in ends:
        end.send(False)
    for process in processes:
        process.join()


def model_alone(tools: WorkerTools, num_batches: int) -> float:
    """The tokenizer on batches that lie ready: images/s."""
    rng = np.random.default_rng(0)
    size = tools.shards.batching.batch_size
    batch = list(rng.integers(0, 256, (size, 224, 224, 3), dtype=np.uint8))
    begin = time.perf_counter()
    for _ in range(num_batches):
        tools.shards.batching.encoder.start(batch, size)()
    return num_batches * size / (time.perf_counter() - begin)


@dataclass(frozen=True)
class Turn:
    """One run of whole shards, and what was measured around it."""

    rate: float
    """Images/s, end to end."""
    wait: float
    """Share of the time in which the model waits."""
    memory_mb: float
    """Largest resident memory of this process."""
    engine_us: float
    """Processor time an image of this process: reading, the model, writing; everything but decoding."""
    decoders_us: float
    """The same of the decode processes."""
    loop_rate: float = 0.0
    """Decoding alone, before and after: mean images/s, and processor time an image."""
    loop_us: float = 0.0
    model_rate: float = 0.0

    @property
    def bound(self) -> float:
        return min(self.loop_rate, self.model_rate)


def end_to_end(tools: WorkerTools, tasks: list[ShardTask], in_flight: int) -> Turn:
    """Whole shards through the driver."""
    statistics_before = (tools.shards.batching.statistics.busy_s, tools.shards.batching.statistics.starved_s)
    peak = 0
    is_over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.2):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    progress = RunProgress(len(tasks))
    pool = LocalWorkers(tools, in_flight)
    begin, cpu, decode_us = time.perf_counter(), time.process_time(), children_cpu_us()
    ShardDriver(ShardSchedule(tasks), pool, [progress]).run()
    seconds = time.perf_counter() - begin
    for _ in range(in_flight):
        pool._tasks.put(None)
    is_over.set()
    watcher.join()
    assert not progress.failures
    busy_s = tools.shards.batching.statistics.busy_s - statistics_before[0]
    starved_s = tools.shards.batching.statistics.starved_s - statistics_before[1]
    num_images = progress.counts.images_written
    return Turn(
        rate=num_images / seconds,
        wait=starved_s / max(busy_s + starved_s, 1e-9),
        memory_mb=peak / 1e6,
        engine_us=(time.process_time() - cpu) / num_images * 1e6,
        decoders_us=(children_cpu_us() - decode_us) / num_images,
    )


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--input", type=Path, default=Path("samples/pairs"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokenizer", nargs="*", default=["null", "sample"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--gpu-at", type=float, nargs="+", default=[], help="shares of the decode rate")
    parser.add_argument("--shards-in-flight", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    corpus = Corpus.read(options.input, options.images)
    print(
        "tokenizer workers shards  decode/s   kept/s  model/s  end-to-end/s  ratio (from to)    model waits  "
        "memory MB  CPU us/img: loop  decoders  engine"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tasks = {number: corpus.write(folder / str(number), number) for number in options.shards}
        for workers in options.workers:
            for tokenizer in options.tokenizer:
                encoder = EncoderConfig(tokenizer=tokenizer, batch_size=options.batch_size)
                with open_tools(pairs_setup(encoder, folder / "out", workers)) as tools:
                    rows += measure_rows(options, corpus, tasks, tools, workers, tokenizer)
            for share in options.gpu_at:
                encoder = EncoderConfig(tokenizer=NULL_TOKENIZER, batch_size=options.batch_size)
                stand_in = GpuStandIn(encoder.preprocess.fingerprint_components(), share)
                with open_tools_with(stand_in, pairs_setup(encoder, folder / "out", workers)) as tools:
                    rows += measure_rows(options, corpus, tasks, tools, workers, f"GPU {share:g}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def pairs_setup(encoder: EncoderConfig, output: Path, num_decode_workers: int) -> WorkerSetup:
    """A worker that tokenizes pairs."""
    return WorkerSetup(
        read=TarSource(documents=read_pairs, config=PairsConfig()),
        settings=ShardSettings(kind="pairs", fingerprint=tokenizer_fingerprint(encoder)),
        encoder=encoder,
        output=str(output),
        num_decode_workers=num_decode_workers,
    )


def measure_rows(
    options: argparse.Namespace,
    corpus: Corpus,
    tasks: dict[int, list[ShardTask]],
    tools: WorkerTools,
    workers: int,
    name: str,
) -> list[dict[str, object]]:
    """One row for each number of shards, printed and returned."""
    with (
        plain_decoders(corpus, workers) as decode_alone,
        plain_decoders(corpus, workers, KEPT_MEMORY) as decode_kept,
    ):
        end_to_end(tools, tasks[options.shards[-1]][:2], 2)  # warms everything up
        turns: dict[int, list[Turn]] = {number: [] for number in tasks}
        kept_rates = []
        for _ in range(options.repeats):
            kept_rates.append(decode_kept()[0])
            before = decode_alone()
            for number, shards in tasks.items():
                model_rate = measure_model(tools, before[0], options.images)
                turn = end_to_end(tools, shards, options.shards_in_flight)
                after = decode_alone()
                loop_rate, loop_us = map(statistics.mean, zip(before, after, strict=True))
                around = {"loop_rate": loop_rate, "loop_us": loop_us, "model_rate": model_rate}
                turns[number].append(replace(turn, **around))
                before = after
    return [
        print_row(name, workers, number, runs, statistics.median(kept_rates))
        for number, runs in turns.items()
    ]


def measure_model(tools: WorkerTools, loop_rate: float, num_images: int) -> float:
    """The model alone, images/s; a stand-in is set to its share of the rate of decoding first."""
    encoder, batch_size = tools.shards.batching.encoder, tools.shards.batching.batch_size
    if isinstance(encoder, GpuStandIn):
        return encoder.set_rate(loop_rate, batch_size)
    return model_alone(tools, max(1, num_images // batch_size // 4))


def print_row(name: str, workers: int, shards: int, turns: list[Turn], kept_rate: float) -> dict[str, object]:
    """The medians of one cell, printed and returned."""
    middle = Turn(*map(statistics.median, zip(*map(astuple, turns), strict=True)))
    ratios = [turn.rate / turn.bound for turn in turns]
    ratio = statistics.median(ratios)
    print(
        f"{name:>9} {workers:>7} {shards:>6} {middle.loop_rate:>9.1f} {kept_rate:>8.1f} "
        f"{middle.model_rate:>8.1f} {middle.rate:>13.1f} {ratio:>6.2f} ({min(ratios):.2f} {max(ratios):.2f}) "
        f"{middle.wait:>15.2f} {middle.memory_mb:>10.0f} {middle.loop_us:>17.0f} "
        f"{middle.decoders_us:>9.0f} {middle.engine_us:>7.0f}",
        flush=True,
    )
    row = {"tokenizer": name, "workers": workers, "shards": shards, "images_per_s": middle.rate}
    return row | {"bound_images_per_s": middle.rate / ratio, "cpu_us_per_image": middle.engine_us}


if __name__ == "__main__":
    main()
