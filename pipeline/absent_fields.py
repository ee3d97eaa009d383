"""Metadata fields that were asked for and that no document got: mostly a name that is spelled otherwise."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow.parquet as pq

from pipeline.run_plan import TokenizeJob
from pipeline.shard_task import TOKEN_SHARD_SUFFIX, ShardTask
from pipeline.sources.metadata import ALL_FIELDS
from pipeline.sources.records import RawDocument
from pipeline.token_dataset import TokenDataset

NUM_SHARDS_PROBED = 8
NUM_SAMPLES_PROBED = 20
"""Samples of the source that are read for the names that there are."""
NUM_FIELDS_NAMED = 12


def absent_fields(dataset: TokenDataset, job: TokenizeJob, tasks: Sequence[ShardTask]) -> str | None:
    """One line, if fields were asked for that no document of the first token shards has; names some it has.

    Args:
        dataset: where the token shards are.
        job: its source tells which fields were asked for. Those of the default are not: no sample has all.
        tasks: source shards whose token shards are complete.
    """
    config = getattr(job.read, "config", None)
    fields = getattr(config, "metadata_fields", None)
    if config is None or not fields or fields == type(config)().metadata_fields or ALL_FIELDS in fields:
        return None
    absent, num_documents = dict.fromkeys(fields), 0
    for metadata in _metadata(dataset, tasks[:NUM_SHARDS_PROBED]):
        num_documents += 1
        for name in metadata:
            absent.pop(name, None)
        if not absent:
            return None
    if not num_documents:
        return None
    there = _fields_there(job, tasks)[:NUM_FIELDS_NAMED]
    known = f"they have {', '.join(there)}" if there else "they have no fields"
    flag = f"--{job.settings_section}.metadata-fields"
    number = f"the {num_documents:,} documents looked at" if num_documents > 1 else "one document"
    return f"{flag}: none of {number} has {', '.join(absent)}; {known}"


def _metadata(dataset: TokenDataset, tasks: Sequence[ShardTask]) -> Iterator[dict[str, object]]:
    for task in tasks:
        table = pq.read_table(
            **dataset.folder.parquet_source(task.name + TOKEN_SHARD_SUFFIX), columns=["metadata"]
        )
        for text in table.column("metadata").to_pylist():
            yield json.loads(text) if text else {}


def _fields_there(job: TokenizeJob, tasks: Sequence[ShardTask]) -> list[str]:
    """Names of fields that the first samples of the source have, each once; none if it cannot be read now."""
    source: Any = job.read
    config = dataclasses.replace(source.config, metadata_fields=(ALL_FIELDS,))
    names: dict[str, None] = {}
    try:
        with closing(dataclasses.replace(source, config=config)(tasks[0])) as items:
            documents = (item for item in items if isinstance(item, RawDocument))
            for document in itertools.islice(documents, NUM_SAMPLES_PROBED):
                names.update(dict.fromkeys(json.loads(document.metadata or "{}")))
    except (OSError, ValueError):  # the run has said what is wrong with it
        return []
    return list(names)
