#!/usr/bin/env python
"""Tokenize clips with captions: WebDataset shards in the video2dataset layout in, token shards out.

    python jobs/tokenize_videos.py --input 'clips/*.tar' --output tokens/clips --frames.num-frames 4

Runs on the Ray cluster that RAY_ADDRESS names, or on this machine alone. Run it again to resume.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `ray job submit jobs/tokenize_videos.py`

from jobs.command_line import run_job
from jobs.config_file import parse_config
from jobs.tokenization import TOKENIZE_ERRORS, run_tokenize_job
from pipeline.run_plan import TokenizeJob
from pipeline.sources.tar_source import TarSource
from pipeline.sources.videos import VideosConfig, read_videos
from pipeline.tokenize_config import TokenizeConfig
from pipeline.video_frames import FrameSampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideosJobConfig(TokenizeConfig):
    """Tokenize clips with captions."""

    frames: FrameSampling = dataclasses.field(default_factory=FrameSampling)
    """Which frames of a clip, and what decodes them."""
    videos: VideosConfig = dataclasses.field(default_factory=VideosConfig)
    """How a sample becomes a clip and its caption."""


def main(arguments: Sequence[str]) -> int:
    """Run the job; returns the exit status."""
    config = parse_config(VideosJobConfig, arguments, __doc__ or "")
    job = TokenizeJob(
        kind="videos",
        read=TarSource(documents=read_videos, config=config.videos),
        settings={"videos": dataclasses.asdict(config.videos), "frames": dataclasses.asdict(config.frames)},
        frames_per_task=config.frames.num_frames,
        video_options=config.frames.to_json(),
    )
    return run_tokenize_job(config, job)


if __name__ == "__main__":
    sys.exit(run_job(main, TOKENIZE_ERRORS))
