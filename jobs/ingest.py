#!/usr/bin/env python
"""Download the pictures of URL lists, or of published OBELICS documents, into WebDataset shards.

    python jobs/ingest.py --input coyo/ --output data/coyo --caption-column text
    python jobs/ingest.py --documents --input 'obelics/*.parquet' --output data/obelics

A list is a parquet, csv, tsv, jsonl or txt file, or a folder of them. Original bytes are kept. Servers that
say noai, noimageai, noindex, noimageindex or none are obeyed; addresses that are not public are refused.
Needs the extra: pip install 'seed-shards[ingest]'. Run it again to resume.
"""

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jobs.command_line import EXIT_FAILED, StopSignal, run_job
from jobs.config_file import parse_config
from pipeline.counted import counted
from pipeline.ingest import IngestError, IngestReport, IngestStoppedError, ingest
from pipeline.ingest_config import DownloadConfig, IngestConfig
from pipeline.ingest_documents import ingest_documents
from pipeline.inputs import expand_inputs
from pipeline.sources.file_patterns import literal_files

NUM_REASONS_SHOWN = 20
LOCAL_URL_REASON = "unknown url type: file"
"""urllib's words for an address that begins with ``file://``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestJobConfig(DownloadConfig):
    """Download pictures into WebDataset shards."""

    input: tuple[str, ...]
    """A URL list or a folder of lists; with --documents, published Parquet files."""
    output: str
    """Folder for the shards."""
    documents: bool = False
    """The input is OBELICS as published; the output has documents with their pictures in documents/."""
    documents_per_shard: int = 1000
    """With --documents: documents in one tar."""


def main(arguments: Sequence[str]) -> int:
    """Run the job; returns the exit status."""
    config = parse_config(IngestJobConfig, arguments, __doc__ or "")
    if not config.input:
        raise ValueError(
            "--input is empty: give a list or a folder of lists; with --documents, Parquet files"
        )
    if len(config.input) > 1 and not config.documents:
        raise ValueError("--input: give one list, or one folder of lists")
    stop = StopSignal()
    try:
        # Without processes there are none to end: the signal may do what it always does.
        with stop if config.num_processes else nullcontext():
            report = _run(config, stop)
    except IngestStoppedError as error:
        print(f"error: {error}", file=sys.stderr)
        return stop.exit_status
    pictures, shards = counted(report.num_rows, "picture"), counted(report.num_shards, "shard")
    print(f"{report.num_images:,} of {pictures} in {shards}")
    for reason, number in report.failures.most_common(NUM_REASONS_SHOWN):
        print(f"  {number} without: {reason}")
    problem = report.imbalance() or _why_nothing_came(report)
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _why_nothing_came(report: IngestReport) -> str | None:
    """The line of a run without a picture: the cause is the list or the network, not a few dead links."""
    if report.num_images:
        return None
    if any(LOCAL_URL_REASON in reason for reason in report.failures):
        return (
            "not one picture came: file:// addresses are not fetched; local pictures need no download,"
            " pack them with `tar cf 00000.tar --sort=name -C FOLDER .`"
        )
    if not report.num_rows:
        return "not one picture came: --input holds no address of one"
    return (
        f"not one picture of {report.num_rows} came, for the reasons above; once they are removed, run it"
        " again with another --output, for this one keeps its failures"
    )


def _run(config: IngestJobConfig, stop: StopSignal) -> IngestReport:
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(DownloadConfig)}
    download = IngestConfig(url_list=Path(config.input[0]), output=Path(config.output), **shared)
    if not config.documents:
        return ingest(download, stop.is_set)
    shards = expand_inputs(literal_files(config.input, (".parquet",)))
    joined = ingest_documents(shards, download, config.documents_per_shard, stop.is_set)
    print(
        f"{counted(joined.num_documents, 'document')} in {config.output}/documents:"
        f" {counted(joined.num_placed, 'place')} with their picture, {joined.missing.total()} without"
    )
    return joined.images


if __name__ == "__main__":
    sys.exit(run_job(main, (IngestError,)))
