"""URL lists in, WebDataset shards out: img2dataset with the parts replaced that web data needs otherwise.

img2dataset splits the lists, downloads with threads and retries. It takes the parts that do the rest as
arguments; ours are:

- `guarded_http`: what its ``urlopen`` uses, installed when a worker process starts; it asks `opt_out`, too;
- `OriginalBytes` for its resizer: the bytes as they came, if they are a picture at all;
- `OriginalsWriter` for its shard writer: samples in the order of the list, with the suffix their content has.

Its own writer puts shards in place while it writes them. Here img2dataset writes a shard into a hidden folder
beside its place, and the files are moved when they are complete, the tar last: a tar that exists is complete,
and the same command again does the rest.

    00000.tar           the pictures that came, as pairs
    00000.parquet       every row of the list with its status and error
    00000_stats.json    img2dataset's counts
"""

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.counted import counted
from pipeline.download_workers import IMG2DATASET_PREFIX, download_workers
from pipeline.ingest_config import IngestConfig
from pipeline.opt_out import OptOut
from pipeline.original_images import OriginalBytes, OriginalsWriter
from pipeline.output_claim import claim_output
from pipeline.prefixed_output import PrefixedOutput
from pipeline.storage import STALE_AFTER_S
from pipeline.url_lists import check_columns, check_urls, list_files, split_lists
from schemas.atomic_write import TEMPORARY_PREFIX, flush_to_disk

logger = logging.getLogger(__name__)

MANIFEST_NAME = "_ingest.json"
NUM_DIGITS = 5
STOP_CHECK_S = 0.5
STAGING_PREFIX = f"{TEMPORARY_PREFIX}ingest-"


class IngestError(RuntimeError):
    """Some shards could not be made; those that were stay."""


class IngestStoppedError(RuntimeError):
    """The run was asked to stop before its end."""


@dataclass(frozen=True)
class IngestReport:
    """What became of the rows of the lists."""

    num_rows: int = 0
    num_images: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Rows without a picture, by img2dataset's error message."""
    num_shards: int = 0

    def __add__(self, other: "IngestReport") -> "IngestReport":
        return IngestReport(
            self.num_rows + other.num_rows,
            self.num_images + other.num_images,
            self.failures + other.failures,
            self.num_shards + other.num_shards,
        )

    def imbalance(self) -> str | None:
        """What does not add up, or None."""
        if self.num_rows != self.num_images + self.failures.total():
            return f"{self.num_rows} rows, but {self.num_images} images + {self.failures.total()} failures"
        return None


def ingest(config: IngestConfig, must_stop: Callable[[], bool] = lambda: False) -> IngestReport:
    """Download what is not there yet; returns the counts of all shards, those of earlier runs included.

    Args:
        config: what and how.
        must_stop: asked about twice a second.

    Raises:
        ValueError: if the list or a column is missing, or the folder was made from another list.
        IngestError: naming the shards that failed.
        IngestStoppedError: when ``must_stop`` says so; the processes have ended, complete shards stay.
    """
    check_is_installed()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # a library of img2dataset's asks PyPI otherwise
    files = list_files(config.url_list)
    check_columns(config, files)
    check_urls(files)
    config.output.mkdir(parents=True, exist_ok=True)
    shards_of(config.output)
    _claim(config, files)
    _remove_stale_staging(config.output)
    staging = config.output / f"{STAGING_PREFIX}{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        with contextlib.redirect_stdout(PrefixedOutput(IMG2DATASET_PREFIX)):
            failed = _download_shards(config, files, staging, must_stop)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if failed:
        raise IngestError(
            f"{counted(len(failed), 'shard')} failed ({'; '.join(failed[:3])});"
            " run the same command again to retry"
        )
    return read_report(config.output)


def shards_of(output: Path) -> dict[int, Path]:
    """The tars of a folder by number. Raises ValueError, naming it, for a tar that is none of ingestion."""
    found = {}
    for path in sorted(output.glob("*.tar")):
        if not path.stem.isdecimal() or not path.with_suffix(".parquet").exists():
            raise ValueError(
                f"{path}: not made by ingestion, which writes NNNNN.tar and NNNNN.parquet; move it out of"
                " the output folder"
            )
        found[int(path.stem)] = path
    return found


def _remove_stale_staging(output: Path) -> None:
    """What killed runs left. A live run touches its folder with every shard that it begins or ends."""
    for left_over in output.glob(f"{STAGING_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            if time.time() - left_over.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(left_over, ignore_errors=True)


def _claim(config: IngestConfig, files: list[Path]) -> None:
    """Shards are named by their place in the list: one folder holds one list, split one way."""
    manifest = {
        "files": [[path.name, path.stat().st_size] for path in files],
        "url_column": config.url_column,
        "caption_column": config.caption_column,
        "kept_columns": list(config.kept_columns),
        "images_per_shard": config.images_per_shard,
    }
    claim_output(config.output / MANIFEST_NAME, manifest)


def _download_shards(
    config: IngestConfig, files: list[Path], staging: Path, must_stop: Callable[[], bool]
) -> list[str]:
    """Make the shards that are missing; returns one line for each that failed."""
    failed = []
    opt_out = OptOut(config.user_agent_token) if config.honour_opt_out else None
    with download_workers(config.num_processes, config.http, opt_out) as pool:
        tasks = {
            pool.submit(download_shard, config, shard_id, rows, columns, staging): shard_id
            for shard_id, rows, columns in split_lists(config, files, set(shards_of(config.output)), staging)
            if not stop_if(must_stop)
        }
        pending = set(tasks)
        while pending:
            stop_if(must_stop)
            done, pending = wait(pending, STOP_CHECK_S, FIRST_COMPLETED)
            for future in done:
                if error := future.exception():
                    failed.append(f"shard {tasks[future]:0{NUM_DIGITS}d}: {type(error).__name__}: {error}")
                    logger.error("%s", failed[-1])
    return failed


def check_is_installed() -> None:
    """Raise ValueError with the remedy where img2dataset is missing."""
    if importlib.util.find_spec("img2dataset") is None:
        raise ValueError("downloading needs img2dataset: pip install 'seed-shards[ingest]'")


def stop_if(must_stop: Callable[[], bool]) -> bool:
    """False, or IngestStoppedError."""
    if must_stop():
        raise IngestStoppedError("stopped; what is complete stays: run the same command again to go on")
    return False


def download_shard(config: IngestConfig, shard_id: int, rows: str, columns: list[str], staging: Path) -> None:
    """Make one shard in ``staging`` and move it into place. Runs in a worker process."""
    from img2dataset.downloader import Downloader

    name = f"{shard_id:0{NUM_DIGITS}d}"
    folder = staging / name
    folder.mkdir(exist_ok=True)
    downloader = Downloader(
        sample_writer_class=OriginalsWriter,
        resizer=OriginalBytes(config.max_pixels),
        thread_count=config.num_threads,
        save_caption=config.caption_column is not None,
        extract_exif=False,
        output_folder=str(folder),
        column_list=columns,
        timeout=config.timeout,
        number_sample_per_shard=config.images_per_shard,
        oom_shard_count=NUM_DIGITS,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=config.num_retries,
        user_agent_token=config.user_agent_token,
        disallowed_header_directives=None,  # `opt_out` sees to it
    )
    downloader.download_shard((shard_id, rows))
    _check_complete(folder, name)
    os.utime(staging)
    if (config.output / f"{name}.tar").exists():
        logger.info("shard=%s was made by another run meanwhile", name)
        return
    for suffix in (".parquet", "_stats.json", ".tar"):
        flush_to_disk(folder / f"{name}{suffix}")
        os.replace(folder / f"{name}{suffix}", config.output / f"{name}{suffix}")
    flush_to_disk(config.output)
    logger.info("shard=%s committed", name)


def _check_complete(folder: Path, name: str) -> None:
    """img2dataset prints an error in its own handling of a row, and goes on without the row."""
    num_rows = pq.read_metadata(folder / f"{name}.parquet").num_rows
    expected = json.loads((folder / f"{name}_stats.json").read_text())["count"]
    if num_rows != expected:
        raise IngestError(
            f"{expected - num_rows} of {expected} rows were lost; img2dataset's messages say why"
        )


def read_report(output: Path) -> IngestReport:
    """Counts over all shards of a folder, from their tables."""
    report = IngestReport()
    for path in shards_of(output).values():
        table = pq.read_table(path.with_suffix(".parquet"), columns=["status", "error_message"])
        statuses: list[dict[str, Any]] = table.to_pylist()
        failures = Counter(str(row["error_message"]) for row in statuses if row["status"] != "success")
        report += IngestReport(len(statuses), len(statuses) - failures.total(), failures, 1)
    return report
