#!/usr/bin/env python
"""Tokenize chats, question-answer sets and image edits: WebDataset shards or JSON files in, token shards out.

    python jobs/tokenize_chats.py --input 'chats/*.tar' --output tokens/chats
    python jobs/tokenize_chats.py --input llava_v1_5_mix665k.json --images llava/data --output tokens/llava

Runs on the Ray cluster that RAY_ADDRESS names, or on this machine alone. Run it again to resume.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `ray job submit jobs/tokenize_chats.py`

from jobs.command_line import run_job
from jobs.config_file import parse_config
from jobs.tokenization import TOKENIZE_ERRORS, run_tokenize_job
from pipeline.run_plan import TokenizeJob
from pipeline.sources.chat_source import ChatSource
from pipeline.sources.chats import ChatsConfig
from pipeline.sources.file_patterns import literal_files
from pipeline.sources.json_lines import JSON_SUFFIXES
from pipeline.sources.tar_reader import SHARD_SUFFIXES
from pipeline.tokenize_config import TokenizeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatsJobConfig(TokenizeConfig):
    """Tokenize chats, questions and answers, and image edits."""

    images: Annotated[str | None, tyro.conf.arg(aliases=["--image-root"])] = None
    """Folder in which JSON files find the images that they name; nothing outside it is ever read."""
    chats: ChatsConfig = dataclasses.field(default_factory=ChatsConfig)
    """How a sample becomes a chat."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_bad_image != "drop-document":
            raise ValueError("--on-bad-image: a chat without one of its images is always dropped whole")


def main(arguments: Sequence[str]) -> int:
    """Run the job; returns the exit status."""
    config = parse_config(ChatsJobConfig, arguments, __doc__ or "")
    config = dataclasses.replace(config, input=literal_files(config.input, (*JSON_SUFFIXES, *SHARD_SUFFIXES)))
    images = Path(config.images).absolute() if config.images else None
    if images and not images.is_dir():
        raise ValueError(f"--images {config.images}: no such folder on this machine")
    job = TokenizeJob(
        kind="chats",
        read=ChatSource(config=config.chats, images=images),
        settings={"chats": dataclasses.asdict(config.chats)},
    )
    return run_tokenize_job(config, job)


if __name__ == "__main__":
    sys.exit(run_job(main, TOKENIZE_ERRORS))
