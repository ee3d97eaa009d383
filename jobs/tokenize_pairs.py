#!/usr/bin/env python
"""Tokenize image-text pairs: WebDataset shards in, token shards out.

    python jobs/tokenize_pairs.py --input 'data/{00000..00099}.tar' --output tokens/coyo --tokenizer seed-2

Runs on the Ray cluster that RAY_ADDRESS names, or on this machine alone. Run it again to resume.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `ray job submit jobs/tokenize_pairs.py`

from jobs.command_line import run_job
from jobs.config_file import parse_config
from jobs.tokenization import TOKENIZE_ERRORS, run_tokenize_job
from pipeline.run_plan import TokenizeJob
from pipeline.sources.pairs import PairsConfig, read_pairs
from pipeline.sources.tar_source import TarSource
from pipeline.tokenize_config import TokenizeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsJobConfig(TokenizeConfig):
    """Tokenize image-text pairs."""

    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    """How a sample becomes an image and its caption."""


def main(arguments: Sequence[str]) -> int:
    """Run the job; returns the exit status."""
    config = parse_config(PairsJobConfig, arguments, __doc__ or "")
    job = TokenizeJob(
        kind="pairs",
        read=TarSource(documents=read_pairs, config=config.pairs),
        settings={"pairs": dataclasses.asdict(config.pairs)},
    )
    return run_tokenize_job(config, job)


if __name__ == "__main__":
    sys.exit(run_job(main, TOKENIZE_ERRORS))
