"""Tiny packed folders, and training runs over them in spawned processes."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from schemas.packed_shard import TextTokenizerIdentity
from schemas.vocabulary import VocabularyLayout
from tests.schemas.packed_rows import make_sequences, write_packed
from tokenizer.checkpoint import load_tokenizer
from tokenizer.text_tokenizer import TextTokenizer
from trainer.checkpoint import CheckpointConfig
from trainer.llama import LlamaConfig
from trainer.metrics import MetricsConfig, read_metrics
from trainer.optimizer import OptimizerConfig
from trainer.presets import PRESETS
from trainer.run_config import DataConfig, ModelConfig, TrainConfig
from trainer.train import TrainResult, train

TEXT_TOKENIZER = Path(__file__).resolve().parents[2] / "samples" / "text_tokenizer"
_SAMPLE = TextTokenizer(TEXT_TOKENIZER)
TEXT_IDENTITY = TextTokenizerIdentity("samples", _SAMPLE.sha256, _SAMPLE.bos_id, _SAMPLE.eos_id)
LAYOUT = VocabularyLayout(base_size=300)
SHAPE = LlamaConfig(
    width=32, num_layers=4, num_heads=4, num_kv_heads=2, head_width=8, mlp_width=64, max_length=128
)
PRESETS["test"] = SHAPE
PRESETS["test tied"] = replace(SHAPE, is_tied=True)


def packed_folder(folder: Path, num_rows: int = 24, seed: int = 0) -> Path:
    """A packed folder of two sources, rows of 96 ids."""
    folder.mkdir(parents=True, exist_ok=True)
    sequences = make_sequences(num_rows, seed, LAYOUT)
    write_packed(folder / "packed-00000.parquet", sequences, vocabulary=LAYOUT)
    return folder


def run_config(packed: Path, output: Path, **changes: Any) -> TrainConfig:
    """Eight steps of eight sequences; every step is recorded."""
    base = TrainConfig(
        output=str(output),
        num_steps=8,
        device="cpu",
        data=DataConfig(packed=str(packed), global_batch=8),
        model=ModelConfig(preset="test"),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, epsilon=1e-8),
        checkpoint=CheckpointConfig(every_steps=100),
        metrics=MetricsConfig(every_steps=1),
        exports_model=False,
    )
    return replace(base, **changes)


def trained_export(folder: Path, text_tokenizer: str = str(TEXT_TOKENIZER), **footer: Any) -> Path:
    """Two steps of the tiny model on rows for a text tokenizer: a run with its export in ``model``.

    Args:
        folder: gets the folders ``packed`` and ``run``, which is returned.
        text_tokenizer: goes into the export; empty: none does.
        footer: what the packed shard says other than usual.
    """
    layout = footer.setdefault("vocabulary", TextTokenizer(TEXT_TOKENIZER).layout)
    footer.setdefault("codebooks", {"coyo": load_tokenizer("sample").codebook_hex})
    footer.setdefault("num_codes", 1024)
    footer.setdefault("tokenizer", TEXT_IDENTITY)
    (folder / "packed").mkdir()
    write_packed(folder / "packed" / "packed-00000.parquet", make_sequences(8, 0, layout), **footer)
    config = run_config(folder / "packed", folder / "run", num_steps=2, exports_model=True)
    run_alone(replace(config, model=ModelConfig(preset="tiny"), text_tokenizer=text_tokenizer))
    return folder / "run"


def run_alone(config: TrainConfig) -> TrainResult:
    """Train in this process."""
    return train(config)


def metrics_of(config: TrainConfig) -> list[dict[str, float]]:
    return [record for record in read_metrics(Path(config.output) / "metrics.jsonl") if "loss" in record]


def losses_of(config: TrainConfig) -> list[float]:
    return [record["loss"] for record in metrics_of(config)]


def run_in_processes(function: Callable[..., Any], num_processes: int, *arguments: Any) -> list[Any]:
    """Call ``function(*arguments)`` in gloo processes of one thread each; the results by rank."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_enter, args=(function, rank, num_processes, folder, arguments))
            for rank in range(num_processes)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * num_processes
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(num_processes)]


def _enter(function: Callable[..., Any], rank: int, world_size: int, folder: str, arguments: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    result = function(*arguments)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
