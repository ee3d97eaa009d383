#!/usr/bin/env python3
"""Train a SEED tokenizer: stage ``qformer`` (image-text contrast), then stage ``codebook``, from WebDataset shards.

    python jobs/train_tokenizer.py --config recipes/tokenizer_small.yaml --stage qformer
    torchrun --nproc-per-node 8 jobs/train_tokenizer.py --config recipes/tokenizer_seed2.yaml --stage qformer
"""

import dataclasses
import glob
import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.config_file import parse_config
from pipeline.training_pairs import PairBatches, TrainingPair, is_held_out, read_pairs
from tokenizer.augment import AugmentConfig
from tokenizer.caption_tokenizer import load_caption_tokenizer, train_caption_tokenizer
from tokenizer.config import SeedTokenizerConfig
from tokenizer.contrastive_stage import ContrastiveConfig, ContrastiveModel
from tokenizer.from_scratch import init_from_scratch
from tokenizer.preprocess import PreprocessConfig
from trainer.contrastive_run import HeldOut, run_contrastive
from trainer.stage_loop import StageRunConfig

logger = logging.getLogger("train_tokenizer")


@dataclass(frozen=True, kw_only=True)
class PairDataConfig:
    """Which pairs, and which of them are kept for evaluation."""

    input: tuple[str, ...] = ()
    """Globs of tar shards."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    group_pattern: str = ""
    """What this removes from a key gives the group (variants of one picture)."""
    held_out_fraction: float = 0.02


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """One tokenizer, both stages."""

    stage: Literal["qformer", "codebook"] = "qformer"
    output: Path = Path("out/tokenizer")
    data: PairDataConfig = field(default_factory=PairDataConfig)
    model: SeedTokenizerConfig = field(default_factory=SeedTokenizerConfig)
    captions: str = "bert-base-uncased"
    """Caption tokenizer: path, hub id, or ``train:SIZE`` for a WordPiece vocabulary of the training captions."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    contrastive_run: StageRunConfig = field(default_factory=StageRunConfig)
    device: str = "cpu"


def main() -> None:
    """Parse, read the pairs, run the stage."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = parse_config(TrainTokenizerConfig, description=__doc__ or "")
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group()
    train, held_out = split_pairs(config.data)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    directory = config.output / config.stage
    run = config.contrastive_run
    batches = PairBatches(train, run.batch_size, run.seed, rank, world)
    logger.info("pairs=%d held_out=%d steps_per_epoch=%d", len(train), len(held_out.captions), batches.steps_per_epoch)
    kind, _, size = config.captions.partition("train:")
    captions = (
        train_caption_tokenizer((pair.caption for pair in train), int(size)) if size else load_caption_tokenizer(kind)
    )
    stage = dataclasses.replace(config.contrastive, vocab_size=captions.vocab_size)
    model = ContrastiveModel(config.model, stage)
    init_from_scratch(model, torch.Generator().manual_seed(run.seed))
    figures = run_contrastive(model.to(config.device), captions, batches, held_out, directory, run, config.augment)
    (directory / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def split_pairs(data: PairDataConfig) -> tuple[list[TrainingPair], HeldOut]:
    """Training pairs, and of each held-out group its first pair."""
    shards = sorted(Path(name) for pattern in data.input for name in glob.glob(pattern))
    if not shards:
        raise ValueError(f"data.input {data.input}: no shard matches")
    train, kept = [], {}
    for pair in read_pairs(shards, data.preprocess, data.group_pattern):
        if not is_held_out(pair.group, data.held_out_fraction):
            train.append(pair)
        elif pair.group not in kept or pair.key < kept[pair.group].key:
            kept[pair.group] = pair
    pairs = [kept[group] for group in sorted(kept)]
    images = np.stack([pair.image for pair in pairs]) if pairs else np.empty((0, 224, 224, 3), np.uint8)
    return train, HeldOut(images, [pair.caption for pair in pairs])


if __name__ == "__main__":
    main()
