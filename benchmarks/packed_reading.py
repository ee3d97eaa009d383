"""Reading packed sequences into torch tensors: ids a second, in order and at random, and against others.

    python -m benchmarks.packed_reading [--sequences 8192] [--seq-length 4096] [--json FILE]

Ours reads ids and what a training step needs besides (document bounds, loss mask, sources); `ids only` counts
the ids column alone; with one row group cached, every random row pays for decoding the
lists of its group. Compared: `datasets` on the same files (its numpy format) and a memory-mapped .bin as
Megatron's IndexedDataset reads it. One process, page cache warm. The list layout shows why ids are a
fixed-size binary: the same rows with ids as list<uint16>.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.packing.megatron_export import export_megatron
from schemas.packed_folder import PackedFolder
from schemas.packed_shard import (
    ROWS_PER_GROUP,
    Origins,
    PackedSequence,
    PackedShardFooter,
    SourceCounts,
    TextTokenizerIdentity,
    encode_runs,
)
from schemas.packed_writer import PackedShardWriter
from schemas.vocabulary import VocabularyLayout

LAYOUT = VocabularyLayout(32_000)
DOCUMENTS_PER_ROW = 24


def write_folder(folder: Path, num_sequences: int, seq_length: int) -> PackedFolder:
    """Random ids, 24 documents a row, everything learned but the first ids."""
    rng = np.random.default_rng(0)
    numbers = np.arange(DOCUMENTS_PER_ROW)
    with PackedShardWriter(folder / "packed-00000.parquet", seq_length, LAYOUT) as writer:
        for _ in range(num_sequences):
            inner = np.sort(rng.choice(np.arange(1, seq_length), DOCUMENTS_PER_ROW - 1, replace=False))
            bounds = np.concatenate([[0], inner, [seq_length]]).astype(np.int32)
            mask = np.ones(seq_length, np.bool_)
            mask[bounds[:-1]] = False
            origins = Origins(
                ["tokens/00000.parquet"] * DOCUMENTS_PER_ROW,
                numbers.astype(np.uint32),
                np.zeros(DOCUMENTS_PER_ROW, np.uint16),
                np.zeros(DOCUMENTS_PER_ROW, np.uint16),
            )
            ids = rng.integers(3, 32_000, seq_length, dtype=np.uint16)
            sources = np.zeros(DOCUMENTS_PER_ROW, np.uint16)
            writer.write(PackedSequence(ids, bounds, encode_runs(mask), sources, origins))
        num_documents, num_ids = DOCUMENTS_PER_ROW * num_sequences, seq_length * num_sequences
        counts = SourceCounts("source", num_documents, num_ids, num_ids - num_documents)
        identity = TextTokenizerIdentity("none", "0" * 64, 1, 2)
        writer.close(
            PackedShardFooter(seq_length, LAYOUT, identity, "0" * 32, 0, 0, 1, num_sequences, (counts,))
        )
    return PackedFolder(folder)


def write_lists(packed: PackedFolder, path: Path) -> None:
    """The same ids as a list column, uncompressed."""
    rows = np.stack([packed[index].ids for index in range(len(packed))])
    offsets = np.arange(0, rows.size + 1, packed.seq_length, dtype=np.int32)
    table = pa.table({"ids": pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))})
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="none", use_dictionary=False)


def rate(read: Callable[[int], torch.Tensor], order: list[int], seq_length: int, repeats: int = 3) -> float:
    """Median million ids a second."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for index in order:
            read(index)
        seconds.append(time.perf_counter() - start)
    return round(len(order) * seq_length / sorted(seconds)[repeats // 2] / 1e6, 1)


def readers(folder: Path, packed: PackedFolder) -> dict[str, Callable[[int], torch.Tensor]]:
    """Ways to get row ``index`` as an int64 tensor, as an embedding wants it."""
    from datasets import load_dataset

    files = export_megatron(packed, folder / "megatron")
    flat = np.memmap(files.paths[0], np.uint16, "r").reshape(-1, packed.seq_length)
    dataset = load_dataset("parquet", data_files=packed.paths, split="train", cache_dir=str(folder / "cache"))
    write_lists(packed, folder / "lists.parquet")
    lists = pq.ParquetFile(folder / "lists.parquet", memory_map=True)
    group_cache: dict[int, np.ndarray] = {}

    def read_list(index: int) -> torch.Tensor:
        group, row = divmod(index, ROWS_PER_GROUP)
        if group not in group_cache:
            group_cache.clear()
            column = lists.read_row_group(group, use_threads=False).column(0).combine_chunks()
            group_cache[group] = column.values.to_numpy().reshape(-1, packed.seq_length)
        return torch.from_numpy(group_cache[group][row].astype(np.int64))

    def read_all(index: int) -> torch.Tensor:
        sequence = packed[index]
        torch.from_numpy(sequence.labels)
        torch.from_numpy(sequence.cu_seqlens.astype(np.int32))
        return torch.from_numpy(sequence.ids.astype(np.int64))

    uncached = PackedFolder(folder)
    uncached.cached_groups = 1

    return {
        "ours, ids only": lambda index: torch.from_numpy(packed[index].ids.astype(np.int64)),
        "ours, ids, labels, cu_seqlens": read_all,
        "ours, one row group cached": lambda index: torch.from_numpy(uncached[index].ids.astype(np.int64)),
        "list<uint16> column": read_list,
        "datasets, same files": lambda index: torch.from_numpy(
            np.frombuffer(dataset[index]["ids"], "<u2").astype(np.int64)
        ),
        "megatron .bin, memory-mapped": lambda index: torch.from_numpy(flat[index].astype(np.int64)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sequences", type=int, default=8192)
    parser.add_argument("--seq-length", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = write_folder(folder, arguments.sequences, arguments.seq_length)
        rng = np.random.default_rng(1)
        in_order = list(range(min(len(packed), 2048)))
        at_random = rng.permutation(len(packed))[:512].tolist()
        for label, read in readers(folder, packed).items():
            results[label] = {
                "in order": rate(read, in_order, packed.seq_length),
                "at random": rate(read, at_random, packed.seq_length),
            }
            print(f"{label:34}{results[label]['in order']:10.1f} {results[label]['at random']:10.1f} M ids/s")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
