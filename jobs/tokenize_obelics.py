#!/usr/bin/env python
"""Tokenize interleaved documents: OBELICS or MMC4 as WebDataset shards, or published OBELICS Parquet.

    python jobs/tokenize_obelics.py --input 'documents/*.tar' --output tokens/obelics
    python jobs/tokenize_obelics.py --input 'obelics/*.parquet' --images downloaded --output tokens/obelics
    ray job submit jobs/tokenize_obelics.py

Without any flag the settings come from the file that SEED_SHARDS_CONFIG names, or from
recipes/obelics_sample.yaml, which tokenizes the sample documents.
Runs on the Ray cluster that RAY_ADDRESS names, or on this machine alone. Run it again to resume.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `ray job submit jobs/tokenize_obelics.py`

from jobs.command_line import run_job
from jobs.config_file import parse_config
from jobs.tokenization import TOKENIZE_ERRORS, run_tokenize_job
from pipeline.encode_shard import ReadDocuments
from pipeline.finish_document import OnBadImage
from pipeline.run_plan import TokenizeJob
from pipeline.sources.file_patterns import literal_files
from pipeline.sources.interleaved import InterleavedConfig, read_interleaved
from pipeline.sources.obelics_parquet import ObelicsParquetSource
from pipeline.sources.tar_source import TarSource
from pipeline.tokenize_config import TokenizeConfig
from pipeline.url_images import build_index

ROOT = Path(__file__).resolve().parent.parent
CONFIG_VARIABLE = "SEED_SHARDS_CONFIG"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObelicsJobConfig(TokenizeConfig):
    """Tokenize interleaved documents."""

    on_bad_image: OnBadImage = "drop-image"
    """What a missing or broken image costs: itself, or its document."""
    images: str | None = None
    """Folder of downloaded pictures (jobs/ingest.py, img2dataset), where --input is published Parquet."""
    interleaved: InterleavedConfig = dataclasses.field(default_factory=InterleavedConfig)
    """How a sample becomes a document."""


def main(arguments: Sequence[str]) -> int:
    """Run the job; returns the exit status."""
    if not arguments:
        os.chdir(ROOT)  # paths in a recipe begin at the root of the repository
        arguments = ["--config", os.environ.get(CONFIG_VARIABLE) or "recipes/obelics_sample.yaml"]
    config = parse_config(ObelicsJobConfig, arguments, __doc__ or "")
    source, config = _source(config)
    settings = {"interleaved": dataclasses.asdict(config.interleaved)}
    return run_tokenize_job(config, TokenizeJob(kind="interleaved", read=source, settings=settings))


def _source(config: ObelicsJobConfig) -> tuple[ReadDocuments, ObelicsJobConfig]:
    """What reads the input, and the configuration with the files that it reads."""
    if config.images is None:
        documents = partial(read_interleaved, on_bad_image=config.on_bad_image)
        return TarSource(documents=documents, config=config.interleaved), config
    images = Path(config.images).absolute()
    build_index(images)
    files = literal_files(config.input, (".parquet",))
    source = ObelicsParquetSource(images=images, config=config.interleaved, on_bad_image=config.on_bad_image)
    return source, dataclasses.replace(config, input=files)


if __name__ == "__main__":
    sys.exit(run_job(main, TOKENIZE_ERRORS))
