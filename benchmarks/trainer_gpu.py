"""Model FLOPs utilisation on CUDA GPUs: synthetic packed rows through the real trainer.

    python benchmarks/trainer_gpu.py --preset 1b
    python benchmarks/trainer_gpu.py --preset seed-llama-8b --micro-batch 1 --checkpointing full
    torchrun --nproc-per-node 8 benchmarks/trainer_gpu.py --preset seed-llama-8b

Prints one JSON line for compiled and one for eager layers: ids/s, MFU (as ``docs/training.md`` counts it,
and as torchtitan does, with full attention over the row), memory. Not run yet: no GPU was at hand when it
was written. Published for comparison: torchtitan 33-39 % (8B, bf16, H100).
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from schemas.packed_shard import (
    Origins,
    PackedSequence,
    PackedShardFooter,
    SourceCounts,
    TextTokenizerIdentity,
    encode_runs,
)
from schemas.packed_writer import PackedShardWriter
from schemas.vocabulary import VocabularyLayout
from trainer.checkpoint import CheckpointConfig
from trainer.metrics import MetricsConfig, peak_flops, read_metrics
from trainer.parallelize import ParallelConfig
from trainer.presets import PRESETS
from trainer.processes import process_group
from trainer.run_config import DataConfig, ModelConfig, TrainConfig
from trainer.train import train

LAYOUT = VocabularyLayout()


def write_rows(path: Path, num_rows: int, length: int) -> None:
    """Rows full of random documents of 50 to 1,000 ids, all learned but their first ids."""
    rng = np.random.default_rng(0)
    sequences = [_row(rng, length) for _ in range(num_rows)]
    documents = sum(len(row.sources) for row in sequences)
    learned = sum(int(row.loss_mask.sum()) for row in sequences)
    counts = SourceCounts("random", documents, num_rows * length, learned, 0)
    tokenizer = TextTokenizerIdentity("none", "0" * 64, 1, 2)
    footer = PackedShardFooter(length, LAYOUT, tokenizer, "random", 0, 0, 1, num_rows, (counts,))
    with PackedShardWriter(path, length, LAYOUT) as writer:
        for row in sequences:
            writer.write(row)
        writer.close(footer)


def _row(rng: np.random.Generator, length: int) -> PackedSequence:
    bounds = [0]
    while bounds[-1] < length:
        bounds.append(min(length, bounds[-1] + int(rng.integers(50, 1001))))
    mask = np.ones(length, np.bool_)
    mask[bounds[:-1]] = False
    count = len(bounds) - 1
    origins = Origins(["none"] * count, np.zeros(count, np.uint32), *np.zeros((2, count), np.uint16))
    ids = rng.integers(0, LAYOUT.size, length).astype(LAYOUT.id_dtype)
    return PackedSequence(
        ids, np.array(bounds, np.int32), encode_runs(mask), np.zeros(count, np.uint16), origins
    )


def measure(options: argparse.Namespace, folder: Path, is_compiled: bool) -> None:
    """Train for a few steps; the record is the mean over the second half."""
    ranks = dist.get_world_size()
    output = folder / ("compiled" if is_compiled else "eager")
    config = TrainConfig(
        output=str(output),
        num_steps=options.steps,
        device="cuda",
        data=DataConfig(
            packed=str(folder / "packed"),
            global_batch=options.micro_batch * options.accumulate * ranks,
            micro_batch=options.micro_batch,
        ),
        model=ModelConfig(preset=options.preset),
        parallel=ParallelConfig(
            precision="bf16", activation_checkpointing=options.checkpointing, is_compiled=is_compiled
        ),
        checkpoint=CheckpointConfig(every_steps=10**6),
        metrics=MetricsConfig(every_steps=options.steps // 2),
        exports_model=False,
    )
    train(config)
    if dist.get_rank() == 0:
        record = read_metrics(output / "metrics.jsonl")[-1]
        print(json.dumps({"preset": options.preset, "compiled": is_compiled} | _summary(record, options)))


def _summary(record: dict[str, float], options: argparse.Namespace) -> dict[str, float]:
    shape = replace(PRESETS[options.preset], vocab_size=LAYOUT.padded_size)
    names = ("ids_per_s", "mfu", "memory_gib", "data_wait_fraction")
    summary = {name: record[name] for name in names if name in record}
    peak = peak_flops(torch.device("cuda"))
    if peak is not None:
        multiplied = shape.num_projection_parameters + shape.vocab_size * shape.width
        full = 6 * multiplied + 12 * shape.num_layers * shape.num_heads * shape.head_width * options.length
        summary["mfu_full_attention"] = full * record["ids_per_s"] / (peak * dist.get_world_size())
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="1b")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checkpointing", choices=("none", "selective", "full"), default="selective")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU; benchmarks/trainer_cpu.py does not")
    with process_group(torch.device("cuda")), tempfile.TemporaryDirectory() as name:
        box = [name]
        dist.broadcast_object_list(box, src=0)
        folder = Path(box[0])
        if dist.get_rank() == 0:
            (folder / "packed").mkdir()
            write_rows(folder / "packed" / "packed-00000.parquet", 256, options.length)
        dist.barrier()
        for is_compiled in (False, True):
            measure(options, folder, is_compiled)


if __name__ == "__main__":
    main()
