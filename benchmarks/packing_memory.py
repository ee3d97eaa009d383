"""Peak memory of shuffling, planning and packing, from ten thousand to ten million documents.

    python -m benchmarks.packing_memory [--documents 10000 100000 1000000 10000000] [--json FILE]

Synthetic pairs: lengths are drawn, ids are filler, so that no ten million captions have to be tokenized;
everything from the rendered files on is the real build. Each size runs in a process of its own, whose peak
resident memory (which includes mapped files) is reported, with and without what importing alone takes.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.packing.epoch_range import WHOLE_EPOCH, EpochRange
from pipeline.packing.mix import Supply, plan_windows
from pipeline.packing.pack_task import PackPlan, PackTask, pack_shard
from pipeline.packing.rendered import Items, items_schema, write_items
from pipeline.packing.shuffle_task import ShuffledSource, ShuffleTask, shuffle_bucket
from schemas.packed_shard import PackedShardFooter, SourceCounts, TextTokenizerIdentity
from schemas.vocabulary import VocabularyLayout

SEQ_LENGTH, WINDOW, WINDOWS_PER_SHARD = 2048, 32_768, 8
BUCKET_IDS = 2_000_000
"""Smaller than the default, so that even the small sizes fill some buckets."""
DOCUMENTS_PER_TASK = 16_384
MEAN_IDS = 54
LAYOUT = VocabularyLayout(32_000)


def write_rendered(folder: Path, num_documents: int, whole: EpochRange) -> list[Path]:
    """What render tasks would leave."""
    paths = []
    for first in range(0, num_documents, DOCUMENTS_PER_TASK):
        rng = np.random.default_rng(first)
        count = min(DOCUMENTS_PER_TASK, num_documents - first)
        lengths = np.clip(36 + rng.gamma(3, 6, count), 36, SEQ_LENGTH).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        mask = np.ones(offsets[-1], np.bool_)
        mask[offsets[:-1]] = False
        small = np.zeros(count, np.uint16)
        keys = rng.integers(0, 2**64, count, dtype=np.uint64)
        rows = np.arange(count, dtype=np.uint32)
        files = np.full(count, first // DOCUMENTS_PER_TASK, np.uint32)
        items = Items(np.full(offsets[-1], 5, np.uint16), mask, offsets, keys, files, rows, small, small)
        buckets = whole.buckets(keys)
        groups = [items.take(np.flatnonzero(buckets == bucket)) for bucket in range(whole.num_buckets)]
        paths.append(folder / f"rendered-{first:09d}.arrow")
        write_items(paths[-1], groups, {"documents": count}, items_schema(np.uint16))
    return paths


def build(folder: Path, num_documents: int) -> dict[str, float]:
    """Shuffle, plan and pack in this process; what it took."""
    base_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = EpochRange(0, 0, WHOLE_EPOCH, max(1, round(num_documents * MEAN_IDS / BUCKET_IDS)))
    rendered = write_rendered(folder, num_documents, whole)
    start = time.perf_counter()
    shuffled = [folder / f"shuffled-{bucket:06d}.arrow" for bucket in range(whole.num_buckets)]
    for bucket, path in enumerate(shuffled):
        shuffle_bucket(ShuffleTask(bucket, tuple(rendered), path, whole, splits=1))
    windows = plan_windows([Supply(ShuffledSource(shuffled), 1.0, is_endless=False)], WINDOW, max_ids=None)
    footer = PackedShardFooter(
        SEQ_LENGTH, LAYOUT, TextTokenizerIdentity("none", "0" * 64, 1, 2), "0" * 32, 0, 0,
        -(-windows.num_windows // WINDOWS_PER_SHARD), 0, (SourceCounts("pairs"),),
    )  # fmt: skip
    names = tuple(f"tokens/{index:06d}.parquet" for index in range(len(rendered)))
    plan = PackPlan(windows, (tuple(map(str, shuffled)),), (names,), footer)
    for shard in range(footer.num_shards):
        first = shard * WINDOWS_PER_SHARD
        last = min(first + WINDOWS_PER_SHARD, windows.num_windows)
        pack_shard(plan, PackTask(shard, first, last, folder / f"packed-{shard:05d}.parquet"))
        (folder / f"packed-{shard:05d}.parquet").unlink()
    elapsed_s = time.perf_counter() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "documents": num_documents,
        "peak_mb": round(peak_mb),
        "over_import_mb": round(peak_mb - base_mb),
        "documents_s": round(num_documents / elapsed_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--one", type=int, help="run one size in this process and print JSON")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(build(Path(folder), arguments.one)))
        return
    results = []
    for number in arguments.documents:
        command = [sys.executable, "-m", "benchmarks.packing_memory", "--one", str(number)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout))
        print(results[-1], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
