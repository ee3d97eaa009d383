"""Model FLOPs utilisation on CUDA GPUs: synthetic packed rows through the real trainer.

    python benchmarks/trainer_gpu.py
    torchrun --nproc-per-node 8 benchmarks/trainer_gpu.py --preset seed-llama-8b --micro-batch 2

Without a preset: the 1B model, then the 8B one in full training, in the largest micro-batch that fits, each
eager and compiled, in processes of their own; made for about ten minutes of one H200 (the 8B model takes
16 bytes a parameter, 103 GiB, beside its activations). Prints a JSON line for each: ids/s, MFU as
``docs/training.md`` counts it and as torchtitan does (full attention over the row), memory. Not run yet: no
GPU was at hand when it was written; ``--device cpu --preset tiny`` runs the same code. Published for
comparison: torchtitan 33-39 % (8B, bf16, H100), one H200 run 57.8 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
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
PLAN = (("1b", "none", 16), ("seed-llama-8b", "selective", 4))
"""Model, activation checkpointing and the micro-batch, in rows of 2,048 ids, to begin with."""
OUT_OF_MEMORY = 3
"""Exit status."""


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


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Train for a few steps; the printed record is the mean over the second half."""
    ranks = dist.get_world_size()
    config = TrainConfig(
        output=str(folder / "run"),
        num_steps=options.steps,
        device=options.device,
        data=DataConfig(
            packed=str(folder / "packed"),
            global_batch=options.micro_batch * options.accumulate * ranks,
            micro_batch=options.micro_batch,
        ),
        model=ModelConfig(preset=options.preset),
        parallel=ParallelConfig(
            precision="bf16",
            activation_checkpointing=options.checkpointing,
            is_compiled=options.compiled,
        ),
        checkpoint=CheckpointConfig(every_steps=0),
        metrics=MetricsConfig(every_steps=-(-options.steps // 2)),
        exports_model=False,
    )
    train(config)
    if dist.get_rank() == 0:
        record = read_metrics(folder / "run" / "metrics.jsonl")[-1]
        names = ("preset", "compiled", "checkpointing", "micro_batch")
        print(json.dumps({name: getattr(options, name) for name in names} | _summary(record, options)))


def _summary(record: dict[str, float], options: argparse.Namespace) -> dict[str, float]:
    shape = PRESETS[options.preset].with_vocabulary(LAYOUT)
    names = ("ids_per_s", "mfu", "memory_gib", "data_wait_fraction")
    summary = {name: record[name] for name in names if name in record}
    peak = peak_flops(torch.device(options.device))
    if peak is not None:
        multiplied = shape.num_projection_parameters + shape.vocab_size * shape.width
        full = 6 * multiplied + 12 * shape.num_layers * shape.num_heads * shape.head_width * options.length
        summary["mfu_full_attention"] = full * record["ids_per_s"] / (peak * dist.get_world_size())
    return summary


def run_plan(options: argparse.Namespace) -> None:
    """Each model eager and compiled; a micro-batch that does not fit is halved."""
    for preset, checkpointing, micro_batch in PLAN:
        for compiled in ("--no-compiled", "--compiled"):
            while micro_batch:
                command = [sys.executable, __file__, "--preset", preset, "--checkpointing", checkpointing]
                command += ["--micro-batch", str(micro_batch), "--steps", str(options.steps), compiled]
                if subprocess.run(command).returncode != OUT_OF_MEMORY:
                    break
                micro_batch //= 2


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--checkpointing", choices=("none", "selective", "full"), default="selective")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True)
    return parser


def main() -> None:
    options = argument_parser().parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU; benchmarks/trainer_cpu.py does not")
    if options.preset is None:
        run_plan(options)
        return
    with process_group(torch.device(options.device)), tempfile.TemporaryDirectory() as name:
        box = [name]
        dist.broadcast_object_list(box, src=0)
        folder = Path(box[0])
        if dist.get_rank() == 0:
            (folder / "packed").mkdir()
            write_rows(folder / "packed" / "packed-00000.parquet", 256, options.length)
        dist.barrier()
        try:
            measure(options, folder)
        except torch.cuda.OutOfMemoryError:
            print(json.dumps({"preset": options.preset, "micro_batch": options.micro_batch, "fits": False}))
            sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
