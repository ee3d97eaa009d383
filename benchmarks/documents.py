"""Interleaved documents: what token shards weigh beside the originals, and what the engine costs.

    python benchmarks/documents.py [--input DIR] [--decode-workers N] [--copies N]

Storage: bytes of the token shards over the bytes of the images and texts (not of the tars). Speed: images a
second end to end with the null tokenizer, over decoding the same images with the same decode processes and
nothing else; the model is left out, so that decoding is the limit.
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


def documents(folder: str) -> list[RawDocument]:
    """All documents of a folder of shards."""
    items = [
        item for shard in expand_inputs([folder]) for item in read_interleaved(read_shard(shard), shard.name)
    ]
    return [item for item in items if isinstance(item, RawDocument)]


def decode_alone(found: list[RawDocument], num_workers: int) -> float:
    """Images a second through the decode processes; reading is done before, and the processes are warm."""
    images = [image.data for document in found for image in document.images]
    with DecodePool(DecodePoolConfig(num_workers=num_workers)) as pool:
        for future in [pool.submit(DecodeTask(data)) for data in images[: 4 * num_workers]]:
            future.result()
        begin = time.perf_counter()
        futures = [pool.submit(DecodeTask(data)) for data in images]
        for future in futures:
            future.exception()
        return len(images) / (time.perf_counter() - begin)


def end_to_end(config: TokenizeConfig) -> tuple[float, int]:
    """Images a second of a run in this process (from its first shard to its last), and bytes written."""
    source = TarSource(
        documents=partial(read_interleaved, on_bad_image="drop-image"), config=InterleavedConfig()
    )
    job = TokenizeJob(kind="interleaved", read=source)
    outcome = run_tokenization(config, job, make_plan(config, job))
    progress = outcome.progress
    return progress.counts.images_written / progress.elapsed_s, progress.output_bytes


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
        for shard in expand_inputs([options.input]):
            for copy in range(options.copies):
                place = Path(folder) / f"copies/{copy:03d}-{shard.name}.tar"
                place.parent.mkdir(exist_ok=True)
                shutil.copy(shard.url, place)
        copied = dataclasses.replace(config, input=(f"{folder}/copies",), output=f"{folder}/many")
        engine, _ = end_to_end(copied)
    alone = decode_alone(found * options.copies, options.decode_workers)
    print(f"decoding alone {alone:.1f} images/s, end to end {engine:.1f} images/s: {engine / alone:.3f}")
    print(f"documents/s end to end {engine * len(found) / len(images):.1f}")


def _texts(document: RawDocument) -> list[str]:
    return [segment.text for segment in document.segments if hasattr(segment, "text")]


if __name__ == "__main__":
    main()
