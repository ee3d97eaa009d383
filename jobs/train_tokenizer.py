#!/usr/bin/env python3
"""Train a SEED tokenizer from WebDataset shards: stage ``qformer`` (image-text contrast), then ``codebook``,
then ``pixels``.

    python jobs/train_tokenizer.py --config recipes/tokenizer_small.yaml --stage qformer
    python jobs/train_tokenizer.py --config recipes/tokenizer_small.yaml --stage codebook
    torchrun --nproc-per-node 8 jobs/train_tokenizer.py --config recipes/tokenizer_seed2.yaml --stage qformer

A stage that was interrupted goes on from its last checkpoint when the same command is given again.
"""

import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.config_file import parse_config
from pipeline.training_pairs import PairBatches, PairDataConfig, split_pairs
from trainer.contrastive_run import held_out_of
from trainer.train_tokenizer import StagesConfig, run_stage

logger = logging.getLogger("train_tokenizer")


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(StagesConfig):
    """One tokenizer, all stages, and its data."""

    data: PairDataConfig = field(default_factory=PairDataConfig)


def main() -> None:
    """Parse, read the pairs, run the stage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = parse_config(TrainTokenizerConfig, description=__doc__ or "")
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    train, kept = split_pairs(config.data)
    held_out = held_out_of(kept)
    run = config.run_of_stage
    batches = PairBatches(train, run.batch_size, run.seed, rank, world_size)
    logger.info(
        "stage=%s pairs=%d held_out=%d steps_per_epoch=%d",
        config.stage, len(train), len(held_out.captions), batches.steps_per_epoch,
    )  # fmt: skip
    figures = run_stage(config, batches, held_out, (pair.caption for pair in train))
    if rank == 0:
        text = json.dumps(figures, indent=1) + "\n"
        (config.output / config.stage / "figures.json").write_text(text, encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
