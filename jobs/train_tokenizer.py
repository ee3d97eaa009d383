#!/usr/bin/env python3
"""Train a SEED tokenizer from WebDataset shards: stage ``qformer`` (image-text contrast), then ``codebook``,
then ``pixels``.

    python jobs/train_tokenizer.py --config recipes/tokenizer_small.yaml --stage qformer
    python jobs/train_tokenizer.py --config recipes/tokenizer_small.yaml --stage codebook
    torchrun --nproc-per-node 8 jobs/train_tokenizer.py --config recipes/tokenizer_seed2.yaml --stage qformer

A stage that was interrupted goes on from its last checkpoint when the same command is given again. Exit
status: 0 finished, 143 saved and stopped by SIGTERM or Ctrl-C, 1 stopped because loss or gradient was not
finite, 2 wrong settings or data.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.command_line import EXIT_STOPPED, run_job
from jobs.config_file import parse_config
from pipeline.pair_stream import PairStream
from pipeline.training_pairs import PairBatches, PairDataConfig, read_held_out, split_pairs
from schemas.atomic_write import write_atomically
from trainer.processes import choose_device, process_group
from trainer.stage_data import held_out_of
from trainer.train_tokenizer import StagesConfig, run_stage

logger = logging.getLogger("train_tokenizer")


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(StagesConfig):
    """One tokenizer, all stages, and its data."""

    data: PairDataConfig = field(default_factory=PairDataConfig)


def main(arguments: Sequence[str]) -> int:
    """Run the job; returns the exit status."""
    config = parse_config(TrainTokenizerConfig, arguments, __doc__ or "")
    try:
        train(config)
    except InterruptedError as stopped:
        logger.warning("%s", stopped)
        return EXIT_STOPPED
    return 0


def train(config: TrainTokenizerConfig) -> None:
    """Read the pairs, run the stage, write its figures."""
    with process_group(choose_device(config.device)):
        run, is_first = config.run_of_stage, dist.get_rank() == 0
        options = (run.batch_size, run.seed, dist.get_rank(), dist.get_world_size())
        batches: PairStream | PairBatches
        shards = config.data.shards()
        if config.data.shuffle_pairs:
            batches, captions = PairStream(shards, config.data, *options), list[str]()
            kept = read_held_out(shards, config.data) if is_first else []
        else:
            pairs, kept = split_pairs(config.data, shards)
            batches, captions = PairBatches(pairs, *options), [pair.caption for pair in pairs]
        held_out = None
        if is_first:
            held_out = held_out_of(kept)
            steps = batches.steps_per_epoch
            logger.info("stage=%s held_out=%d steps_per_epoch=%d", config.stage, len(kept), steps)
        data = config.data.settings(shards, dist.get_world_size())
        figures = run_stage(config, batches, held_out, captions, data)
        if is_first:
            text = json.dumps(figures, indent=1) + "\n"
            write_atomically(config.output / config.stage / "figures.json", text.encode())


if __name__ == "__main__":
    sys.exit(run_job(main, (FloatingPointError,)))
