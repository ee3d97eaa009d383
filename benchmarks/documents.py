"""Interleaved documents: what token shards weigh beside the originals, and what the engine costs.

    python -m benchmarks.documents [--input DIR] [--decode-workers N] [--copies N]

Storage: bytes of the token shards over the bytes of the images and texts (not of the tars). Speed: images a
second end to end with the null tokenizer, over decoding the same images with the same decode processes and
nothing else; the model is left out, so that decoding is the limit. Both are measured as the difference of a
long and a short run, so that starting processes does not count, and take turns on a machine that is shared.
"""

import argparse
import dataclasses
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

from pipeline.decode import DecodeTask
from pipeline.decode_pool import DecodePool, DecodePoolConfig
from pipeline.inputs import expand_inputs
from pipeline.read_shard import read_shard
from pipeline.sources.interleaved import InterleavedConfig, read_interleaved
from pipeline.sources.records import RawDocument
from pipeline.sources.tar_source import TarSource
from pipeline.tokenize_config import TokenizeConfig
from pipeline.tokenize_run import TokenizeJob, make_plan, run_tokenization

SAMPLES = Path(__file__).parents[1] / "samples/documents"
ROUNDS = 3


def documents(folder: str) -> list[RawDocument]:
    """All documents of a folder of shards."""
    items = [
        item for shard in expand_inputs([folder]) for item in read_interleaved(read_shard(shard), shard.name)
    ]
    return [item for item in items if isinstance(item, RawDocument)]


def decode_alone(images: list[bytes], num_workers: int) -> float:
    """Seconds to decode images in decode processes, which are warm."""
    with DecodePool(DecodePoolConfig(num_workers=num_workers)) as pool:
        for future in [pool.submit(DecodeTask(data)) for data in images[: 8 * num_workers]]:
            future.exception()
        begin = time.perf_counter()
        for future in [pool.submit(DecodeTask(data)) for data in images]:
            future.exception()
        return time.perf_counter() - begin


def end_to_end(config: TokenizeConfig) -> tuple[float, int]:
    """Seconds of a run in this process, and bytes written."""
    source = TarSource(
        documents=partial(read_interleaved, on_bad_image="drop-image"), config=InterleavedConfig()
    )
    job = TokenizeJob(kind="interleaved", read=source)
    begin = time.perf_counter()
    outcome = run_tokenization(config, job, make_plan(config, job))
    return time.perf_counter() - begin, outcome.progress.output_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", default=str(SAMPLES))
    parser.add_argument("--decode-workers", type=int, default=2)
    parser.add_argument(
        "--copies", type=int, default=8, help="copies of each shard, for a run of useful length"
    )
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
        for number in range(ROUNDS):
            short, _ = end_to_end(dataclasses.replace(config, output=f"{folder}/short{number}"))
            alone = decode_alone(images * options.copies, options.decode_workers) * (1 - 1 / options.copies)
            long, _ = end_to_end(
                dataclasses.replace(config, input=(str(copies),), output=f"{folder}/long{number}")
            )
            ratios.append(alone / (long - short))
            print(
                f"decoding alone {more / alone:.1f} images/s, end to end {more / (long - short):.1f} images/s"
                f" and {more / (long - short) * len(found) / len(images):.1f} documents/s: {ratios[-1]:.3f}"
            )
    print(f"median of {ROUNDS}: {sorted(ratios)[ROUNDS // 2]:.3f}")


def _texts(document: RawDocument) -> list[str]:
    return [segment.text for segment in document.segments if hasattr(segment, "text")]


if __name__ == "__main__":
    main()
