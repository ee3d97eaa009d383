#!/usr/bin/env python3
"""Train a language model on packed shards: pretraining, LoRA, instruction tuning; from one CPU to many GPUs.

    python jobs/pretrain.py --config recipes/pretrain_tiny.yaml --data.packed out/packed
    torchrun --nproc-per-node 8 jobs/pretrain.py --config recipes/pretrain_8b.yaml --data.packed /data/packed
    ray job submit --working-dir . -- python jobs/pretrain.py --launcher ray --config recipes/pretrain_8b.yaml

Given again, the same command goes on from the newest complete checkpoint. Exit status: 0 finished, 143 saved
and stopped by SIGTERM or Ctrl-C, 1 stopped because loss or gradient was not finite, 2 wrong settings or data.
"""

import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `ray job submit` imports from elsewhere

from jobs.command_line import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE
from jobs.config_file import parse_config
from pipeline.shard_driver import PoolError
from trainer.curves_page import write_curves
from trainer.metrics import read_metrics
from trainer.non_finite import NonFiniteError
from trainer.run_config import TrainConfig
from trainer.run_folder import check_run_folder
from trainer.train import TrainResult, train


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Workers that Ray Train starts; used with ``launcher`` ray."""

    num_workers: int = 1
    """Processes of the run."""
    uses_gpu: bool = True
    """One GPU a worker; false trains on CPUs."""
    cpus_per_worker: int = 1
    """CPUs that Ray reserves for each worker."""
    max_failures: int = 10
    """Failures of workers after which the run is given up; each goes on from the newest checkpoint."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """A training run and how its processes start."""

    launcher: str = "torch"
    """``torch``: this process, or those of torchrun. ``ray``: workers of Ray Train."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.launcher not in ("torch", "ray"):
            raise ValueError(f"launcher must be torch or ray, got {self.launcher!r}")


def main(arguments: list[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        config = parse_config(PretrainConfig, arguments, __doc__ or "")
        result = launch(config)
    except (NonFiniteError, PoolError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    if os.environ.get("RANK", "0") == "0":
        summarize(Path(config.output), result, config.num_steps)
    return 0 if result.is_finished else EXIT_STOPPED


def summarize(output: Path, result: TrainResult, num_steps: int) -> None:
    """Print how the run ended; ``curves.html`` beside the metrics, where they are enough for a line."""
    records = read_metrics(output / "metrics.jsonl")
    if result.first_step >= num_steps:
        print(
            f"nothing was to be done: {output} holds step {result.first_step:,}, num_steps is {num_steps:,};"
            " a larger --num-steps goes on, another --output begins anew"
        )
    else:
        ending = "finished" if result.is_finished else "stopped"
        print(f"{ending} after {result.step:,} steps{_course(records)}")
    if len(records) > 1:
        print(f"  curves       {write_curves(output)}")
    if (output / "checkpoints").exists():
        print(f"  checkpoints  {output / 'checkpoints'}")
    if result.is_finished and (output / "model").exists():
        print(f"  model        {output / 'model'}")
    if not result.is_finished:
        print("  the same command goes on from there")


def _course(records: list[dict[str, float]]) -> str:
    """First and last recorded loss, with their steps; a resumed run's first is that of its beginning."""
    losses = [f"{record['loss']:.2f} at step {record['step']:,}" for record in records if "loss" in record]
    ends = dict.fromkeys([*losses[:1], *losses[-1:]])
    return f", loss {', '.join(ends)}" if losses else ""


def launch(config: PretrainConfig) -> TrainResult:
    """Train here, or in workers of Ray."""
    if not config.data.packed:
        raise ValueError("--data.packed is missing: the folder that `seed-pack build` wrote")
    if config.launcher == "torch":
        return train(config)
    from jobs.ray_training import train_on_ray

    check_run_folder(Path(config.output))  # before Ray writes into it
    return train_on_ray(
        config,
        num_workers=config.ray.num_workers,
        uses_gpu=config.ray.uses_gpu,
        cpus_per_worker=config.ray.cpus_per_worker,
        max_failures=config.ray.max_failures,
    )


if __name__ == "__main__":
    sys.exit(main())
