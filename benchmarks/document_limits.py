"""Interleaved documents end to end against their limits: decoding the same pictures alone, the model alone.

    python -m benchmarks.document_limits [--input DIR] [--workers N] [--tokenizer null sample] [--json FILE]

All three do the same work in one run, in turns, several times; medians count. Decoding alone, a plain loop
of as many processes as the engine has for it, and the engine take every picture of the documents; the model
alone as many pictures of noise, which cost it the same. Everything is started and warmed up before.
``ratio`` is images/s end to end over the smaller limit, ``of kept`` the same over a loop that keeps its
memory as decode processes do (see `benchmarks.tokenization`). Where model and decoding have to share the
cores, no wall-clock limit holds: ``processor`` is the processor time of decoding and model alone over that of
the engine with its decode processes, and holds on a busy machine, too.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.documents import SAMPLES, documents
from benchmarks.tokenization import Corpus, end_to_end, is_sound, model_alone, plain_decoders
from pipeline.decode_process import KEPT_MEMORY
from pipeline.encode_shard import ShardSettings
from pipeline.inputs import expand_inputs
from pipeline.shard_task import ShardTask
from pipeline.sources.interleaved import InterleavedConfig, read_interleaved
from pipeline.sources.tar_source import TarSource
from pipeline.worker_tools import EncoderConfig, WorkerSetup, open_tools, tokenizer_fingerprint

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def processor_s() -> float:
    """Processor time of this process and of its children so far."""
    spent = time.process_time()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended just now
            continue
        if int(fields[1]) == os.getpid():
            spent += (int(fields[11]) + int(fields[12])) * TICK_S
    return spent


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and of the processors."""
    begin, spent = time.perf_counter(), processor_s()
    work()
    return time.perf_counter() - begin, processor_s() - spent


def measure_row(
    options: argparse.Namespace, tokenizer: str, corpus: Corpus, num_documents: int
) -> dict[str, float | str]:
    """Print one tokenizer's row, and return what it says."""
    encoder = EncoderConfig(tokenizer=tokenizer, batch_size=options.batch_size)
    shards = expand_inputs([options.input])
    tasks = [
        ShardTask(f"{copy:03d}/{shard.name}", shard.url, shard.num_bytes)
        for copy in range(options.copies)
        for shard in shards
    ]
    num_images = len(corpus.images)
    with tempfile.TemporaryDirectory() as output:
        setup = WorkerSetup(
            read=TarSource(documents=read_interleaved, config=InterleavedConfig()),
            settings=ShardSettings(
                kind="interleaved",
                fingerprint=tokenizer_fingerprint(encoder),
                on_bad_image="drop-image",
            ),
            encoder=encoder,
            output=output,
            num_decode_workers=options.workers,
        )
        with (
            open_tools(setup) as tools,
            plain_decoders(corpus, options.workers) as decode_alone,
            plain_decoders(corpus, options.workers, KEPT_MEMORY) as decode_kept,
        ):
            end_to_end(tools, tasks[: len(shards)], 2)  # warms everything up
            parts = {
                "decode": decode_alone,
                "kept": decode_kept,
                "model": lambda: model_alone(tools, math.ceil(num_images / options.batch_size)),
                "engine": lambda: end_to_end(tools, tasks, options.shards_in_flight),
            }
            rounds = [{name: measured(work) for name, work in parts.items()} for _ in range(options.rounds)]
    wall, spent = (
        {name: statistics.median(each[name][place] for each in rounds) for name in parts} for place in (0, 1)
    )
    ratio, of_kept = (max(wall[name], wall["model"]) / wall["engine"] for name in ("decode", "kept"))
    processor = (spent["decode"] + spent["model"]) / spent["engine"]
    print(
        f"{tokenizer:>9} {options.workers:>7} {num_images / wall['decode']:>9.1f} "
        f"{num_images / wall['model']:>8.1f} {num_images / wall['engine']:>9.1f} "
        f"{num_documents / wall['engine']:>12.1f} {ratio:>6.2f} {of_kept:>8.2f} {processor:>9.2f}",
        flush=True,
    )
    return {
        "tokenizer": tokenizer,
        "workers": options.workers,
        "processor": processor,
        "images_per_s": num_images / wall["engine"],
        "limit_images_per_s": num_images / max(wall["decode"], wall["model"]),
    }


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--input", default=str(SAMPLES), help="a folder of shards")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode")
    parser.add_argument("--tokenizer", nargs="+", default=["null", "sample"])
    parser.add_argument("--copies", type=int, default=8, help="times that every shard is done in a round")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--shards-in-flight", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    found = documents(options.input)
    images = [(image.suffix, image.data) for document in found for image in document.images]
    corpus = Corpus([image for image in images if is_sound(image[1])] * options.copies)
    print("tokenizer workers  decode/s  model/s  images/s  documents/s  ratio  of kept processor")
    num_documents = len(found) * options.copies
    rows = [measure_row(options, tokenizer, corpus, num_documents) for tokenizer in options.tokenizer]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
